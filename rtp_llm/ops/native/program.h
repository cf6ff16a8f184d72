// What Python recorded, as 64-bit words: an opcode and how many operands follow, the command's result, how many floats
// to allocate for it (0: it is there), and the operands in the order of the command's members. A tensor is the address
// of host memory, or 2 * slot + 1.
#pragma once
#include <stdexcept>

#include "stream.h"

namespace {

enum Opcode : int64_t {
  kReset = 0, kFree, kLinear, kNorm, kEmbed, kAttention, kRotary, kGated, kPool, kCopyColumns, kNormalize,
  kTakeRows, kQuantize, kLinearInt8, kLinearGrouped, kRoute, kGroupRows, kGather, kExpertProducts, kMixExperts, kActivate
};

constexpr int64_t kMaxOpcodes = 256;

class Program {
 public:
  // Adds the commands to the stream; std::bad_alloc when an activation does not fit into memory.
  static void load(Stream& stream, const char* words, int64_t num_words) {
    const char* const end = words + 8 * num_words;
    for (Program program{stream, words, end}; program.next_ < end;) program.load_command(end);
  }

 private:
  Stream& stream_;
  const char *next_, *end_;  // of the words that may be read

  Program(Stream& stream, const char* words, const char* end) : stream_(stream), next_(words), end_(end) {}

  // What was written for other kernels would have these read and write anywhere; it ends the process.
  [[noreturn]] __attribute__((noinline)) static void refuse_operands() {
    throw std::logic_error("a command has other operands than these kernels read");
  }

  template <class T>
  T word() {
    static_assert(sizeof(T) == 8);
    if (next_ >= end_) refuse_operands();
    T value;
    std::memcpy(&value, next_, 8);
    next_ += 8;
    return value;
  }
  int64_t number() { return word<int64_t>(); }
  float real() { return float(word<double>()); }
  const int32_t* integers() { return word<const int32_t*>(); }
  const void* weights() { return word<const void*>(); }  // on the host, fp32 or bf16
  float* tensor(int64_t reference) {
    return reference % 2 != 0 ? stream_.block(reference / 2) : reinterpret_cast<float*>(reference);
  }
  float* floats() { return tensor(number()); }
  Routing routing(float* memory) { return {memory, number(), number(), number()}; }
  NormWeights norm() { return {floats(), floats(), real(), number() != 0}; }

  void load_command(const char* program_end) {
    end_ = program_end;
    const int64_t header = number(), result = number(), size = number(), opcode = header % kMaxOpcodes;
    if (header / kMaxOpcodes > (program_end - next_) / 8) refuse_operands();
    end_ = next_ + 8 * (header / kMaxOpcodes);
    if (opcode == kReset) return stream_.reset();
    if (opcode == kFree) return stream_.free(result / 2);
    if (size > 0) stream_.allocate(result / 2, size * 4);
    stream_.record(command(opcode, tensor(result)));
    if (next_ != end_) refuse_operands();
  }

  Command command(int64_t opcode, float* y) {
    switch (opcode) {
      case kLinear:
        return Linear{y, floats(), weights(), floats(), floats(), number(), number(), number(), int(number()),
                      number() != 0, int(number())};
      case kNorm: return NormRows{y, floats(), floats(), number(), number(), norm()};
      case kEmbed: return embed(y);
      case kAttention:
        return Attention{y, floats(), integers(), integers(), integers(), integers(), number(),
                         word<const float* const*>(), word<const int64_t*>(), number(), number(), number(), number(),
                         number(), Visibility{number() != 0, number()}, Adjustment{real(), real(), floats(), number()},
                         Relative{floats(), floats(), number()}, int(number())};
      case kRotary: return Rotary{y, floats(), number(), number(), number(), number(), norm(), norm()};
      case kActivate: return Activate{floats(), number(), number(), int(number())};
      case kGated: return Gated{y, floats(), number(), number(), int(number())};
      case kPool: return Pool{y, floats(), integers(), integers(), number(), number(), int(number())};
      case kCopyColumns: return CopyColumns{y + number(), floats(), number(), number(), number()};
      case kQuantize: return Quantize{y, floats(), number(), number()};
      case kLinearInt8:
        return LinearInt8{y, floats(), weights(), floats(), floats(), number(), number(), number(), int(number())};
      case kLinearGrouped:
        return number() == 8 ? Command(grouped<8>(y)) : Command(grouped<4>(y));
      case kTakeRows: return TakeRows{y, floats(), integers(), number(), number()};
      case kRoute: return Route{routing(y), floats(), floats(), number()};
      case kGroupRows: return GroupRows{routing(y)};
      case kGather: return gather(y);
      case kExpertProducts: return expert_products(y);
      case kMixExperts: return MixExperts{y, floats(), floats(), floats(), number(), routing(floats())};
      case kNormalize: return Normalize{y, floats(), number(), number()};
      default: throw std::logic_error("a command that these kernels do not know");  // ends the process
    }
  }

  template <int kBits>
  LinearGrouped<kBits> grouped(float* y) {
    LinearGrouped<kBits> product{y, floats(), weights(), floats(), floats(), number(), number(), number(), int(number())};
    product.bf16_parts = int(number());
    return product;
  }

  TakeRows gather(float* y) {
    const float* x = floats();
    const int64_t size = number();
    const Routing routed = routing(floats());
    return {y, x, routed.sources(), routed.pairs(), size};
  }

  Command expert_products(float* y) {
    const int64_t kind = number(), parts = number();
    if (kind == 1) return products_of<LinearInt8>(y);
    if (kind == 4) return products_of<LinearGrouped<4>>(y, parts);
    if (kind == 8) return products_of<LinearGrouped<8>>(y, parts);
    return products_of<Linear>(y, parts);
  }

  template <class Product>
  ExpertProducts<Product> products_of(float* y, int64_t parts) {
    ExpertProducts<Product> products = products_of<Product>(y);
    products.whole.bf16_parts = int(parts);
    return products;
  }

  template <class Product>
  ExpertProducts<Product> products_of(float* y) {
    ExpertProducts<Product> products{};
    products.whole.y = y;
    products.whole.x = floats();
    products.weights = word<const int64_t*>();
    products.whole.N = number();
    products.whole.K = number();
    products.whole.activation = int(number());
    products.routing = routing(floats());
    return products;
  }

  Embed embed(float* y) {
    Embed embed{y, number(), number(), number(), number(), real(), {}, {}, {}};
    for (const void*& table : embed.tables) table = weights();
    for (const int32_t*& ids : embed.ids) ids = integers();
    embed.norm = norm();
    return embed;
  }
};

}  // namespace
