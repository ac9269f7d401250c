// The inner loops, once for each instruction set. All give the same bits (docs/numerics.md).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "gguf.h"

namespace rksim {

// int8 weights are packed when a model is loaded: blocks of 16 rows, in a block quads of 4 inputs, in a quad the 16
// rows' 4 bytes. So one vector holds 16 rows, and nothing is summed across lanes. Activations of several tokens are
// packed to match: tiles of 4 tokens, in a tile quads, in a quad the 4 tokens' 4 bytes.
constexpr int64_t kRows = 16, kQuad = 4, kTile = 4;

// The longest row of +-127 by +-127 whose sum an int32 holds.
constexpr int64_t kMaxSum = 2147483647 / (127 * 127);

// Modulo 2^32, in which it is added to a sum that an int32 holds again: on long rows it is itself larger than that.
constexpr int32_t minus_128_times(int32_t sum) { return static_cast<int32_t>(-128u * static_cast<uint32_t>(sum)); }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One linear layer, N rows of K.
struct Linear {
  int id = -1;  // of a model's layers, counted as they are loaded
  int64_t n = 0, k = 0;
  int64_t group = 0, groups = 1;  // inputs that share a scale; k without groups
  GgmlType type = GgmlType::I8;
  const uint8_t* data = nullptr;  // packed int8, or rows of fp16 or fp32
  const float* scales = nullptr;  // packed [N / 16][groups][16]
  const float* bias = nullptr;    // [N]; nullptr: none
  int64_t blocks() const { return ceil_div(n, kRows); }
  int64_t quads() const { return ceil_div(k, kQuad); }
};

// Tokens quantised to int8, packed for the kernels. A token has one scale, or one a group (scale_groups == groups).
struct Activations {
  int64_t tokens = 0, width = 1;  // width: tokens in a tile, 1 or kTile
  int64_t k = 0, group = 0, quads = 0, groups = 1, scale_groups = 1;
  std::vector<int8_t> q;            // [tiles][quads][width][4]
  std::vector<float> amax, scale;   // [tiles * width][scale_groups]: max |x|, and that / 127
  std::vector<int32_t> correction;  // [tiles * width][groups]: -128 * sum of q, for kernels with unsigned weights
  // Grows, never shrinks; padding tokens and inputs are zero.
  void shape(int64_t tokens, int64_t k, int64_t group, bool scale_by_group);
};

// Floats that the scores of a head take, whole vectors at both runs' ends included.
constexpr int64_t kMaxHeads = 4;  // that a kernel computes at once
constexpr int64_t score_room(int64_t length) { return (length + 31) / 16 * 16; }

// Where attention heads that share them find its keys and values: `length` positions, the oldest in slot `first` of a
// ring.
struct KvView {
  const void *k, *v;  // [context][head_dim], fp16 or fp32
  int64_t first, length, context, head_dim;
  bool fp32;
  float scale;     // of q . k
  float soft_cap;  // 0: none
};

struct Kernels {
  const char* name;
  uint8_t flip;  // packed weight bytes are q ^ flip (0x80: unsigned)

  // Blocks [b0, b1): y[t * stride + row] for all tokens. `padded` y has room for whole blocks of rows.
  void (*linear_i8)(const Linear& w, const Activations& x, int64_t b0, int64_t b1, float* y, int64_t stride);
  // The same without scales: the accumulators of a layer of one group, [tokens][blocks * 16].
  void (*accumulate_i8)(const Linear& w, const Activations& x, int64_t b0, int64_t b1, int32_t* acc, int64_t stride);
  // Rows [n0, n1) of an fp16 or fp32 layer, x in float32 [tokens][K].
  void (*linear_float)(const Linear& w, const float* x, int64_t tokens, int64_t n0, int64_t n1, float* y,
                       int64_t stride);
  // One token's amax, and its bytes, scales and corrections from an amax that may be that of several.
  void (*measure)(const float* x, int64_t token, Activations& out);
  void (*quantise)(const float* x, int64_t token, Activations& out);
  // y may be x. `bias` nullptr: none.
  void (*rms_norm)(const float* x, const float* gain, float* y, int64_t n, float eps);
  void (*layer_norm)(const float* x, const float* gain, const float* bias, float* y, int64_t n, float eps);
  // y = activation(gate) * up, or activation(gate) where `up` is nullptr; y may be gate.
  void (*silu)(const float* gate, const float* up, float* y, int64_t n);
  void (*gelu_tanh)(const float* gate, const float* up, float* y, int64_t n);
  void (*soft_cap)(float* x, int64_t n, float cap);  // x = cap * tanh(x / cap)
  void (*add)(const float* x, float* y, int64_t n);  // y += x
  void (*scale)(float* x, int64_t n, float factor);  // x *= factor
  void (*rope)(float* head, const float* cos, const float* sin, int64_t half);
  void (*to_f16)(const float* x, uint16_t* y, int64_t n);
  void (*from_f16)(const uint16_t* x, float* y, int64_t n);
  // [heads][head_dim] of q, whose heads share keys and values. `scores` has room for kMaxHeads * score_room(kv.length).
  void (*attend)(const float* q, int64_t heads, const KvView& kv, float* out, float* scores);
};

// The best this machine has, or the one RKSIM_KERNEL names. Throws Error on a name it does not know or cannot run.
const Kernels& kernels();
const Kernels& kernels_by_name(std::string_view name);

// Rows of int8 (and their scales) into the packed layout; whole blocks [b0, b1).
void pack_rows(const int8_t* q, int64_t n, int64_t k, uint8_t flip, int64_t b0, int64_t b1, uint8_t* out);
void pack_scales(const float* scales, int64_t n, int64_t groups, float* out);

// Exact accumulators of plain row-major operands: acc[tokens][rows].
void gemm_i8(const Kernels& kernels, const int8_t* w, const int8_t* x, int64_t rows, int64_t k, int64_t tokens,
             int32_t* acc);

}  // namespace rksim
