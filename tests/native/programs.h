// Programs as Python records them (rtp_llm/ops/native_stream.py), for drivers that include the library whole: a layer of
// every command that the kernels know, in sizes that are no multiple of anything.
#pragma once
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "rtp_llm/ops/native/library.cpp"

namespace {

using Floats = std::vector<float>;

inline void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::abort();
}

inline Floats normal(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> numbers;
  Floats values(static_cast<size_t>(n));
  for (float& value : values) value = numbers(random);
  return values;
}

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};

// A packed weight of random numbers. Kinds as native_experts.py counts them: 0 as it is, 1 in 8 bits, 8 or 4 in groups.
struct Weight {
  int64_t N, K, kind;
  bool is_bf16;
  int parts;
  std::unique_ptr<void, FreeMemory> memory;

  Weight(int64_t N, int64_t K, int64_t kind, int64_t parts, bool is_bf16 = false)
      : N(N), K(K), kind(kind), is_bf16(is_bf16), parts(int(parts)) {
    Floats w = normal(N * K, unsigned(N + K));
    for (float& x : w) x = is_bf16 ? std::ldexp(std::round(x * 32.0f), -8) : x / 8;
    void* start = nullptr;
    check(posix_memalign(&start, 64, size_t(bytes())) == 0, "there is memory for a weight");
    memory.reset(start);
    if (kind == 1) rtp_pack_int8(w.data(), N, K, start);
    else if (kind == 0) rtp_pack_weight(w.data(), N, K, start, is_bf16, this->parts);
    else rtp_pack_grouped(w.data(), N, K, start, int(kind));
  }
  int64_t bytes() const {
    if (kind == 0) return rtp_packed_bytes(N, K, is_bf16, parts);
    return kind == 1 ? rtp_int8_weight_bytes(N, K) : rtp_grouped_weight_bytes(N, K, int(kind));
  }
  int64_t address() const { return reinterpret_cast<int64_t>(memory.get()); }
};

// A result by its reference; 0 stands for none.
struct Tensor {
  int64_t reference = 0, rows = 0, size = 0;
};

class Recorder {
 public:
  std::string words;
  int64_t parts;  // of each number that are multiplied

  explicit Recorder(int64_t parts) : parts(parts) {}

  template <class... T>
  void add(int64_t opcode, int64_t result, int64_t size, T... operands) {
    for (int64_t word : {opcode + kMaxOpcodes * int64_t(sizeof...(operands)), result, size}) put(word);
    (put(operands), ...);
  }

  // A command whose result is a tensor of its own.
  template <class... T>
  Tensor compute(int64_t opcode, int64_t rows, int64_t size, T... operands) {
    const Tensor y{2 * slots_++ + 1, rows, size};
    add(opcode, y.reference, rows * size, operands...);
    return y;
  }

  void drop(Tensor x) { add(kFree, x.reference, 0); }

 private:
  int64_t slots_ = 0;

  template <class T>
  void put(T operand) {
    if constexpr (std::is_floating_point_v<T>) append(double(operand));
    else if constexpr (std::is_pointer_v<T>) append(reinterpret_cast<int64_t>(operand));
    else append(int64_t(operand));
  }
  template <class T>
  void append(T word) {
    static_assert(sizeof word == 8);
    words.append(reinterpret_cast<const char*>(&word), 8);
  }
};

// What attention is asked for beside plain heads.
struct Variant {
  bool causal, prefix, unseen, bias, relative, wanted;
  int64_t window;
  double softcap;
  int64_t parts = 3;
};

constexpr Variant kVariants[] = {
    {false, false, false, false, false, false, 0, 0.0}, {true, true, false, false, false, false, 0, 0.0},
    {false, false, false, false, false, false, 9, 0.0}, {true, true, false, true, false, false, 40, 0.0},
    {false, false, true, false, false, false, 3, 0.0},  {false, false, false, false, false, true, 0, 20.0},
    {false, false, false, false, true, false, 0, 0.0},  {true, true, false, false, false, true, 70, 5.0},
    {false, false, true, true, true, false, 0, 0.0},    {true, true, false, false, false, false, 0, 0.0, 2},
    {false, false, true, false, false, false, 0, 0.0, 1}, {true, true, false, true, false, false, 40, 0.0, 1},
    {true, true, false, false, false, true, 0, 5.0, 1},
};
constexpr size_t kNumVariants = sizeof kVariants / sizeof *kVariants;

constexpr int64_t kSize = 52, kWide = 71, kExperts = 5, kHeads = 4, kKvHeads = 2, kDim = 26;

// A layer's, packed for products of so many parts.
struct Weights {
  Weight qkv, out, gated;
  std::vector<Weight> linear, up, down;  // of each kind; of each expert of each kind
  std::vector<int64_t> up_addresses, down_addresses;

  explicit Weights(int64_t parts)
      : qkv((kHeads + 2 * kKvHeads) * kDim, kSize, 0, parts),
        out(kSize, kHeads * kDim, 0, parts),
        gated(2 * kSize, kSize, 0, parts) {
    for (int64_t kind : {0, 1, 8, 4}) {
      for (int e = 0; e < kExperts; ++e) {
        const bool is_bf16 = kind == 0 && e % 2 == 1;
        up.emplace_back(kWide, kSize, kind, parts, is_bf16);
        down.emplace_back(kSize, kWide, kind, parts, is_bf16);
      }
      linear.emplace_back(kSize, kSize, kind, parts, kind == 0);
    }
    for (const Weight& weight : up) up_addresses.push_back(weight.address() + weight.is_bf16);
    for (const Weight& weight : down) down_addresses.push_back(weight.address() + weight.is_bf16);
  }
};

class Layer {
 public:
  static constexpr int64_t kSequences = 4;

  Layer() {
    for (int32_t i = 0; i < rows(); ++i) ids_.push_back(i % int32_t(kTable));
    for (size_t seq = 0; seq < size_t(kSequences); ++seq) {
      const int32_t length = cu_seqlens_[seq + 1] - cu_seqlens_[seq];
      seen_.push_back(std::max(1, length - 30));
      wanted_.push_back(cu_seqlens_[seq + 1] - 1);
    }
    for (int64_t i = 0; i < kTable * kSize; ++i) narrow_.push_back(uint16_t(0x3F00 + i % 200));
  }

  // The program of a variant, which writes `kSequences * kSize` floats to `output`.
  std::string record(const Variant& variant, float* output) const {
    const Weights& weights = weights_[variant.parts - 1];
    Recorder to(variant.parts);
    to.add(kReset, 0, 0);
    Tensor x = embed(to);
    Tensor qkv = product(to, x, weights.qkv);
    to.add(kRotary, qkv.reference, 0, angles_.data(), rows(), kHeads, kKvHeads, kDim, norm_.data(), 0, 1e-6, 0, 0, 0,
           0.0, 0);
    const Tensor y = attention(to, variant, qkv);
    to.drop(qkv);
    if (variant.wanted) x = to.compute(kTakeRows, y.rows, kSize, x.reference, wanted_.data(), y.rows, kSize);
    x = product(to, product(to, y, weights.out), weights.linear[0], x);
    x = to.compute(kNorm, x.rows, kSize, x.reference, x.reference, x.rows, kSize, norm_.data(), norm_.data(), 1e-5, 1);
    for (const Weight& weight : weights.linear) x = product(to, x, weight, x);
    const Tensor wide = product(to, x, weights.gated);
    x = to.compute(kGated, x.rows, kSize, wide.reference, x.rows, kSize, int(kSilu));
    to.drop(wide);
    for (size_t kind = 0; kind < weights.linear.size(); ++kind) x = mixture(to, x, weights, kind);
    if (!variant.wanted)
      x = to.compute(kPool, kSequences, kSize, x.reference, cu_seqlens_.data(), 0, kSequences, kSize, int(kMean));
    x = to.compute(kNormalize, kSequences, kSize, x.reference, kSequences, kSize);
    to.add(kCopyColumns, reinterpret_cast<int64_t>(output), 0, 0, x.reference, kSequences, kSize, kSize);
    return std::move(to.words);
  }

 private:
  static constexpr int64_t kTable = 50, kTop = 2, kReach = 20, kKept = 17;

  const std::vector<int32_t> cu_seqlens_{0, 1, 38, 239, 252}, prefix_{-1, 0, -2, -1};
  std::vector<int32_t> ids_, seen_, wanted_;
  const Floats table_ = normal(kTable * kSize, 1), norm_ = normal(kSize, 2), bias_ = normal(4 * kSize, 3);
  const Floats angles_ = normal(rows() * kDim, 4), distances_ = normal(kHeads * (2 * kReach - 1), 5);
  const Floats relative_ = normal(kHeads * kDim * (2 * kReach - 1), 6), router_ = normal(kExperts * kSize, 7);
  const Floats kept_ = normal(kKept * 2 * kKvHeads * kDim, 8);
  const float* const kept_address_ = kept_.data();
  const int64_t kept_len_ = kKept;
  std::vector<uint16_t> narrow_;
  const std::array<Weights, 3> weights_{Weights(1), Weights(2), Weights(3)};  // by their parts

  int64_t rows() const { return cu_seqlens_.back(); }

  Tensor embed(Recorder& to) const {
    return to.compute(kEmbed, rows(), kSize, rows(), kSize, 2, 2, 0.5, table_.data(), narrow_.data(), 0, 0, ids_.data(),
                      ids_.data(), 0, 0, norm_.data(), 0, 1e-6, 0);
  }

  Tensor product(Recorder& to, Tensor x, const Weight& weight, Tensor residual = {}) const {
    const auto record = [&](int64_t opcode, auto... operands) {
      return to.compute(opcode, x.rows, weight.N, operands..., weight.address(), bias_.data() , residual.reference,
                        x.rows, weight.N, weight.K, int(kGelu));
    };
    if (weight.kind == 1) {
      const Tensor quantized = quantize(to, x);
      const Tensor y = record(kLinearInt8, quantized.reference);
      to.drop(quantized);
      return y;
    }
    if (weight.kind != 0)
      return to.compute(kLinearGrouped, x.rows, weight.N, weight.kind, x.reference, weight.address(), bias_.data(),
                        residual.reference, x.rows, weight.N, weight.K, int(kGelu), to.parts);
    return to.compute(kLinear, x.rows, weight.N, x.reference, weight.address(), 0, residual.reference, x.rows, weight.N,
                      weight.K, int(kNone), weight.is_bf16, to.parts);
  }

  Tensor quantize(Recorder& to, Tensor x) const {
    return to.compute(kQuantize, x.rows, rtp_quantized_row_bytes(x.size) / 4, x.reference, x.rows, x.size);
  }

  Tensor attention(Recorder& to, const Variant& variant, Tensor qkv) const {
    const int64_t num_rows = variant.wanted ? kSequences : rows(), reach = variant.bias ? kReach : 0;
    const auto given = [](bool is_given, const auto& values) { return is_given ? values.data() : nullptr; };
    return to.compute(kAttention, num_rows, kHeads * kDim, qkv.reference, cu_seqlens_.data(),
                      given(variant.prefix, prefix_), given(variant.unseen, seen_), given(variant.wanted, wanted_),
                      variant.wanted ? kSequences : 0, &kept_address_, &kept_len_, kSequences, int64_t(201), kHeads,
                      kKvHeads, kDim, variant.causal, variant.window, 0.2, variant.softcap,
                      given(variant.bias, distances_), reach, given(variant.relative, relative_),
                      given(variant.relative, relative_), variant.relative ? kReach : 0, to.parts);
  }

  Tensor mixture(Recorder& to, Tensor x, const Weights& weights, size_t nth_kind) const {
    const int64_t kind = weights.linear[nth_kind].kind, pairs = x.rows * kTop, first = int64_t(nth_kind) * kExperts;
    const int64_t room = x.rows * kExperts + 4 * pairs + kExperts + 1;
    const Tensor routing =
        to.compute(kRoute, 1, room, x.rows, kExperts, kTop, x.reference, router_.data(), kSize);
    to.add(kGroupRows, routing.reference, 0, x.rows, kExperts, kTop);
    Tensor y = to.compute(kGather, pairs, kSize, x.reference, kSize, routing.reference, x.rows, kExperts, kTop);
    for (const auto& [addresses, N, K] : {std::tuple{&weights.up_addresses, kWide, kSize}, {&weights.down_addresses, kSize, kWide}}) {
      const Tensor rows = kind == 1 ? quantize(to, y) : y;
      y = to.compute(kExpertProducts, pairs, N, kind, to.parts, rows.reference, addresses->data() + first, N, K, int(kRelu),
                     routing.reference, x.rows, kExperts, kTop);
      to.drop(rows);
    }
    return to.compute(kMixExperts, x.rows, kSize, y.reference, bias_.data(), x.reference, kSize, routing.reference,
                      x.rows, kExperts, kTop);
  }
};

// What a program computes on so many threads, as a stream that has run nothing before gives it.
inline Floats compute(const Layer& layer, const Variant& variant, int threads) {
  Floats output(size_t(Layer::kSequences * kSize));
  const std::string words = layer.record(variant, output.data());
  Stream* stream = rtp_stream_new();
  check(rtp_run(stream, words.data(), int64_t(words.size()) / 8, threads), "there is memory to run in");
  rtp_stream_delete(stream);
  for (float value : output) check(std::isfinite(value), "a result is finite");
  return output;
}

}  // namespace
