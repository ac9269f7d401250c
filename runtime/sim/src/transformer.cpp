#include "transformer.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "error.h"
#include "lora.h"

namespace rksim {
namespace {

using Floats = Transformer::Floats;

void grow(Floats& v, int64_t n) {
  if (v.size() < static_cast<size_t>(n)) v.resize(static_cast<size_t>(n));
}

// Below this many multiplications a loop is over before another thread has woken.
constexpr int64_t kWorthThreads = 1 << 16;

ActScale act_scale_setting() {
  const char* name = std::getenv("RKSIM_ACT_SCALE");
  if (!name || !*name || !std::strcmp(name, "token")) return ActScale::kToken;
  if (!std::strcmp(name, "tile64")) return ActScale::kTile64;
  if (!std::strcmp(name, "group")) return ActScale::kGroup;
  throw Error(std::string("RKSIM_ACT_SCALE is '") + name + "': there are token, tile64 and group");
}

const std::vector<double>& frequencies_for(const Rope& rope, int64_t context) {
  return rope.is_long(context) ? rope.long_frequencies : rope.frequencies;
}

// [layers][2: k, v][kv heads][context][head_dim]. Throws Error where that is more than there can be.
Pages kv_cache(const Shape& shape, int64_t context, size_t value_bytes) {
  size_t bytes = value_bytes;
  bool fits = true;
  for (int64_t factor :
       {int64_t{2}, int64_t{shape.n_layers}, int64_t{shape.n_kv_heads}, int64_t{shape.head_dim}, context})
    fits = fits && !__builtin_mul_overflow(bytes, static_cast<size_t>(factor), &bytes);
  try {
    if (fits) return Pages(bytes, false);
  } catch (const std::bad_alloc&) {
  }
  throw Error("there is no memory for the keys and values of " + std::to_string(context) +
              " positions: lower max_context_len");
}

}  // namespace

Transformer::Transformer(Model& m, int n)
    : model(m), kernels(m.kernels), shape(m.shape), features(m.features), context(n),
      q_size(int64_t{shape.n_heads} * shape.head_dim), kv_size(int64_t{shape.n_kv_heads} * shape.head_dim),
      act_scale(m.act_scale ? *m.act_scale : act_scale_setting()), kv_bytes(m.kv_fp32 ? 4 : 2),
      frequencies_(frequencies_for(features.rope, n)), cache_(kv_cache(shape, context, kv_bytes)) {}

uint8_t* Transformer::cached(int layer, int side, int64_t head) const {
  const int64_t slots = ((int64_t{layer} * 2 + side) * shape.n_kv_heads + head) * context * shape.head_dim;
  return cache_.data() + static_cast<size_t>(slots) * kv_bytes;
}

// body(token) for every token, on all threads where there are several.
template <class F>
void Transformer::each_token(int64_t tokens, F&& body) {
  if (tokens == 1) return body(0);
  model.pool.run(tokens, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) body(t);
  });
}

void Transformer::quantise(const float* input, int64_t tokens, const Linear& to) {
  activations_.shape(tokens, to.k, to.group, act_scale == ActScale::kGroup && to.groups > 1);
  if (act_scale != ActScale::kTile64 || tokens == 1) {
    each_token(tokens, [&](int64_t t) {
      kernels.measure(input + t * to.k, t, activations_);
      kernels.quantise(input + t * to.k, t, activations_);
    });
    return;
  }
  each_token(tokens, [&](int64_t t) { kernels.measure(input + t * to.k, t, activations_); });
  for (int64_t begin = 0; begin < tokens; begin += kTile64) {
    const auto from = activations_.amax.begin() + begin, to_end = from + std::min(kTile64, tokens - begin);
    std::fill(from, to_end, *std::max_element(from, to_end));
  }
  each_token(tokens, [&](int64_t t) { kernels.quantise(input + t * to.k, t, activations_); });
}

// One input to several layers at once, each block of rows on the thread that is free.
void Transformer::linear(const float* input, int64_t tokens, std::initializer_list<Job> jobs) {
  const Linear& first = *jobs.begin()->linear;
  const bool quantised = first.type == GgmlType::I8;
  if (quantised) quantise(input, tokens, first);
  int64_t total = 0;
  for (const Job& job : jobs) total += quantised ? job.linear->blocks() : job.linear->n;
  model.pool.run(total, quantised ? 4 : 16, [&](int64_t begin, int64_t end) {
    for (const Job& job : jobs) {
      const Linear& l = *job.linear;
      const int64_t size = quantised ? l.blocks() : l.n;
      const int64_t from = std::max<int64_t>(begin, 0), to = std::min(end, size);
      if (from < to) {
        if (quantised)
          kernels.linear_i8(l, activations_, from, to, job.y, job.stride);
        else
          kernels.linear_float(l, input, tokens, from, to, job.y, job.stride);
        const int64_t row = quantised ? from * kRows : from, rows = (quantised ? std::min(to * kRows, l.n) : to) - row;
        if (l.bias)
          for (int64_t t = 0; t < tokens; t++) kernels.add(l.bias + row, job.y + t * job.stride + row, rows);
      }
      begin -= size;
      end -= size;
    }
  });
  if (!lora) return;
  for (const Job& job : jobs)
    if (const LoraPair* pair = lora->find(*job.linear)) adapt(*pair, input, tokens, job);
}

void Transformer::adapt(const LoraPair& pair, const float* input, int64_t tokens, const Job& job) {
  const int64_t rank = pair.a.n, n = pair.b.n;
  grow(low_rank_, tokens * rank);
  grow(change_, tokens * n);
  each_token(tokens, [&](int64_t t) {
    kernels.linear_float(pair.a, input + t * pair.a.k, 1, 0, rank, &low_rank_[static_cast<size_t>(t * rank)], rank);
  });
  model.pool.run(n, 16, [&](int64_t begin, int64_t end) {
    kernels.linear_float(pair.b, low_rank_.data(), tokens, begin, end, change_.data(), n);
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t i = begin; i < end; i++)
        job.y[t * job.stride + i] += pair.scale * change_[static_cast<size_t>(t * n + i)];
  });
}

void Transformer::embed(const int32_t* ids, int64_t tokens, float* out) const {
  for (int64_t t = 0; t < tokens; t++, out += shape.hidden) {
    if (ids[t] < 0 || ids[t] >= shape.n_vocab)
      throw Error("token id " + std::to_string(ids[t]) + " is outside the vocabulary of " +
                  std::to_string(shape.n_vocab));
    const int64_t row = int64_t{ids[t]} * shape.hidden;
    if (model.embedding->type == GgmlType::F32)
      std::memcpy(out, reinterpret_cast<const float*>(model.embedding->data) + row,
                  static_cast<size_t>(shape.hidden) * sizeof(float));
    else
      kernels.from_f16(reinterpret_cast<const uint16_t*>(model.embedding->data) + row, out, shape.hidden);
    if (features.embedding_scale != 1) kernels.scale(out, shape.hidden, features.embedding_scale);
  }
}

void Transformer::set_input(const int32_t* ids, int64_t tokens) {
  grow(x, tokens * shape.hidden);
  embed(ids, tokens, x.data());
}

// What enters the first layer: an embedding scale has been applied to it by whoever made it.
void Transformer::set_input(const float* embeddings, int64_t tokens) {
  grow(x, tokens * shape.hidden);
  std::memcpy(x.data(), embeddings, static_cast<size_t>(tokens * shape.hidden) * sizeof(float));
}

void Transformer::turn_tables(int64_t tokens) {
  const Rope& rope = features.rope;
  const std::vector<double>* tables[2] = {&frequencies_, &rope.local_frequencies};
  for (int table = 0; table < 2; table++) {
    const auto half = static_cast<int64_t>(tables[table]->size());
    grow(cosine_[table], tokens * half);
    grow(sine_[table], tokens * half);
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t i = 0; i < half; i++) {
        const double angle = static_cast<double>(position + t) * (*tables[table])[static_cast<size_t>(i)];
        const auto at = static_cast<size_t>(t * half + i);
        cosine_[table][at] = static_cast<float>(std::cos(angle) * rope.attention_factor);
        sine_[table][at] = static_cast<float>(std::sin(angle) * rope.attention_factor);
      }
  }
}

// Where a position lies in the ring, behind the positions that stay.
int64_t Transformer::slot_of(int64_t at) const { return at < kept ? at : kept + (at - kept) % (context - kept); }

// What a token at position `at` sees.
Transformer::Seen Transformer::seen_from(int64_t at, int window) const {
  const int64_t seen = window ? std::min<int64_t>(window, context) : context;
  const int64_t length = std::min(at + 1, seen), begin = at + 1 - length;
  if (kept == 0 || at < context) return {0, begin % context, length, context};
  // The ring has wrapped: the window lies in it, or takes in all there is, in the order of the slots.
  if (length <= context - kept) return {kept, slot_of(begin) - kept, length, context - kept};
  return {0, 0, context, context};
}

// The norms of one token's heads, RoPE, and its keys and values into the cache.
void Transformer::place(int index, int64_t t) {
  const Layer& l = model.layers[static_cast<size_t>(index)];
  const Rope::Table table = features.rope.layers[static_cast<size_t>(index)];
  const int64_t dim = shape.head_dim, half = features.rope.dims / 2, slot = slot_of(position + t);
  const float* cosine = table == Rope::kNone ? nullptr : &cosine_[table - 1][static_cast<size_t>(t * half)];
  const float* sine = table == Rope::kNone ? nullptr : &sine_[table - 1][static_cast<size_t>(t * half)];
  auto prepare = [&](float* head, const Norm& gain) {
    if (gain.gain) norm(gain, head, head, dim);
    if (cosine) kernels.rope(head, cosine, sine, half);
  };
  for (int h = 0; h < shape.n_heads; h++) prepare(&q_[static_cast<size_t>(t * q_size + h * dim)], l.q_norm);
  if (features.temperature_scale != 0) {
    const double steps = static_cast<double>((position + t) / features.temperature_length);
    kernels.scale(&q_[static_cast<size_t>(t * q_size)], q_size,
                  static_cast<float>(1 + double{features.temperature_scale} * std::log1p(steps)));
  }
  for (int h = 0; h < shape.n_kv_heads; h++) {
    float *key = &k_[static_cast<size_t>(t * kv_size + h * dim)],
          *value = &v_[static_cast<size_t>(t * kv_size + h * dim)];
    prepare(key, l.k_norm);
    store(key, cached(index, 0, h), slot);
    store(value, cached(index, 1, h), slot);
  }
}

void Transformer::store(const float* from, uint8_t* head, int64_t slot) {
  uint8_t* to = head + static_cast<size_t>(slot * shape.head_dim) * kv_bytes;
  if (model.kv_fp32)
    std::memcpy(to, from, static_cast<size_t>(shape.head_dim) * kv_bytes);
  else
    kernels.to_f16(from, reinterpret_cast<uint16_t*>(to), shape.head_dim);
}

void Transformer::attend(int layer, int64_t tokens) {
  const int64_t shared = shape.n_heads / shape.n_kv_heads, dim = shape.head_dim;
  const int window = features.windows[static_cast<size_t>(layer)];
  const int64_t most = window ? std::min<int64_t>(window, context) : context;
  // Heads that share keys together, where that leaves enough pieces for all threads.
  const int64_t together = tokens >= model.pool.size() * 4 || model.pool.size() == 1 ? shared : 1;
  auto body = [&](int64_t begin, int64_t end) {
    thread_local Floats scores;
    for (int64_t i = begin; i < end; i++) {
      const int64_t h = i / tokens * together, t = i % tokens;
      const Seen seen = seen_from(position + t, window);
      const size_t from = static_cast<size_t>(seen.base * dim) * kv_bytes;
      grow(scores, kMaxHeads * score_room(seen.length));
      KvView kv{cached(layer, 0, h / shared) + from,
                cached(layer, 1, h / shared) + from,
                seen.begin,
                seen.length,
                seen.ring,
                dim,
                model.kv_fp32,
                features.attention_scale,
                features.attention_soft_cap};
      const auto at = static_cast<size_t>(t * q_size + h * dim);
      kernels.attend(&q_[at], together, kv, &mixed_[at], scores.data());
    }
  };
  const int64_t pieces = tokens * shape.n_heads / together;
  if (pieces * together * std::min(position + tokens, most) * dim < kWorthThreads)
    body(0, pieces);
  else
    model.pool.run(pieces, 1, body);
}

void Transformer::norm(const Norm& by, const float* from, float* to, int64_t n) const {
  if (features.norm == NormKind::kLayer)
    kernels.layer_norm(from, by.gain, by.bias, to, n, features.norm_eps);
  else
    kernels.rms_norm(from, by.gain, to, n, features.norm_eps);
}

void Transformer::norm_tokens(const Norm& by, Floats& from, Floats& to, int64_t tokens) {
  each_token(tokens, [&](int64_t t) {
    const auto at = static_cast<size_t>(t * shape.hidden);
    norm(by, &from[at], &to[at], shape.hidden);
  });
}

// What a sublayer reads: the residual stream through its norm, where it has one.
const float* Transformer::input_of(const Norm& by, int64_t tokens) {
  if (!by.gain) return x.data();
  norm_tokens(by, x, normed, tokens);
  return normed.data();
}

// Leaves in delta_ what attention would add.
void Transformer::attention(int index, const float* input, int64_t tokens) {
  const Layer& l = model.layers[static_cast<size_t>(index)];
  linear(input, tokens, {{&l.q, q_.data(), q_size}, {&l.k, k_.data(), kv_size}, {&l.v, v_.data(), kv_size}});
  each_token(tokens, [&](int64_t t) { place(index, t); });
  attend(index, tokens);
  linear(mixed_.data(), tokens, {{&l.output, delta_.data(), shape.hidden}});
}

// Leaves in delta_ what the MLP would add.
void Transformer::mlp(const Layer& l, const float* input, int64_t tokens) {
  const int64_t n = shape.intermediate;
  const bool gated = l.gate.n != 0;
  if (gated)
    linear(input, tokens, {{&l.gate, gate_.data(), n}, {&l.up, up_.data(), n}});
  else
    linear(input, tokens, {{&l.up, gate_.data(), n}});
  const auto activate = features.activation == Activation::kSilu ? kernels.silu : kernels.gelu_tanh;
  each_token(tokens, [&](int64_t t) {
    const auto at = static_cast<size_t>(t * n);
    activate(&gate_[at], gated ? &up_[at] : nullptr, &gate_[at], n);
  });
  linear(gate_.data(), tokens, {{&l.down, delta_.data(), shape.hidden}});
}

void Transformer::add_delta(const Norm& post, int64_t tokens) {
  if (post.gain) norm_tokens(post, delta_, delta_, tokens);
  if (features.residual_scale != 1) kernels.scale(delta_.data(), tokens * shape.hidden, features.residual_scale);
  kernels.add(delta_.data(), x.data(), tokens * shape.hidden);
}

void Transformer::layer(int index, int64_t tokens) {
  const Layer& l = model.layers[static_cast<size_t>(index)];
  const float* input = input_of(l.attn_norm, tokens);
  attention(index, input, tokens);
  add_delta(l.attn_post_norm, tokens);
  mlp(l, features.parallel ? input : input_of(l.ffn_norm, tokens), tokens);
  add_delta(l.ffn_post_norm, tokens);
}

void Transformer::make_room(int64_t tokens) {
  for (Floats* v : {&x, &normed, &delta_}) grow(*v, tokens * shape.hidden);
  for (Floats* v : {&q_, &mixed_}) grow(*v, tokens * q_size);
  for (Floats* v : {&k_, &v_}) grow(*v, tokens * kv_size);
  for (Floats* v : {&gate_, &up_}) grow(*v, tokens * shape.intermediate);
  turn_tables(tokens);
}

void Transformer::forward(int64_t tokens) {
  make_room(tokens);
  for (int i = 0; i < shape.n_layers; i++) layer(i, tokens);
  position += tokens;
}

void Transformer::logits(const float* normed_states, int64_t tokens, float* out) {
  const int64_t n = shape.n_vocab;
  linear(normed_states, tokens, {{&model.output, out, n}});
  if (features.logit_scale != 1) kernels.scale(out, tokens * n, features.logit_scale);
  if (features.logit_soft_cap > 0) kernels.soft_cap(out, tokens * n, features.logit_soft_cap);
}

int64_t Transformer::next_chunk(int64_t left, size_t chunk) const {
  const int64_t most = std::min(left, static_cast<int64_t>(std::max<size_t>(chunk, 1)));
  return position + most > context ? 1 : most;
}

}  // namespace rksim
