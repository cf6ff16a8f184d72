// ollama-js's calls against the server of argv -> what its own objects hold, as JSON.
import { createRequire } from "node:module";

const given = JSON.parse(process.argv[2]);
const { Ollama } = await import(createRequire(given.node).resolve("ollama"));
const client = new Ollama({ host: given.dense });
const names = (list) => list.models.map((model) => model.name);
const embed = async (options) => (await client.embed({ model: "m", input: given.texts, ...options })).embeddings;
const refused = await client.chat({ model: "m", messages: [{ role: "user", content: "hi" }] }).catch((error) => ({
  status: error.status_code, message: error.message,
}));
console.log(JSON.stringify({
  vectors: await embed(),
  sliced: await embed({ dimensions: 4 }),
  older: (await client.embeddings({ model: "m", prompt: given.texts[0] })).embedding,
  models: names(await client.list()),
  running: names(await client.ps()),
  shown: (await client.show({ model: "m" })).model_info,
  version: (await client.version()).version,
  refused,
}));
