// openai-node's calls against the server of argv -> what its own objects hold, as JSON.
import { createRequire } from "node:module";

const given = JSON.parse(process.argv[2]);
const { default: OpenAI } = await import(createRequire(given.node).resolve("openai"));
const client = new OpenAI({ baseURL: `${given.dense}/v1`, apiKey: "unused" });
const embed = (options) => client.embeddings.create({ model: "m", input: given.texts, ...options });
const vectors = async (options) => (await embed(options)).data.map((entry) => Array.from(entry.embedding));
const models = await client.models.list();
const refused = await embed({ dimensions: 99999 }).catch((error) => ({
  status: error.status, type: error.type, param: error.param, message: error.message, id: error.requestID,
}));
const began = performance.now();
const retried = await vectors();
console.log(JSON.stringify({
  seconds: (performance.now() - began) / 1000,
  vectors: retried,
  float: await vectors({ encoding_format: "float" }),
  sliced: await vectors({ dimensions: 8 }),
  models: models.data.map((model) => model.id),
  refused,
}));
