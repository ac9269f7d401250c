// The Llama transformer over a KV cache, step by step as docs/numerics.md has it.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "error.h"
#include "lora.h"

namespace rksim {
namespace {

using Floats = std::vector<float>;

void grow(Floats& v, int64_t n) {
  if (v.size() < static_cast<size_t>(n)) v.resize(static_cast<size_t>(n));
}

struct Job {
  const Linear* linear;
  float* y;
  int64_t stride;
};

// Below this many multiplications a loop is over before another thread has woken.
constexpr int64_t kWorthThreads = 1 << 16;

// What shares an activation scale: not published for the real NPU, so a setting (RKSIM_ACT_SCALE).
enum class ActScale { kToken, kTile64, kGroup };
constexpr int64_t kTile64 = 64;

ActScale act_scale_setting() {
  const char* name = std::getenv("RKSIM_ACT_SCALE");
  if (!name || !*name || !std::strcmp(name, "token")) return ActScale::kToken;
  if (!std::strcmp(name, "tile64")) return ActScale::kTile64;
  if (!std::strcmp(name, "group")) return ActScale::kGroup;
  throw Error(std::string("RKSIM_ACT_SCALE is '") + name + "': there are token, tile64 and group");
}

}  // namespace

struct Session::Impl {
  Model& model;
  const Kernels& kernels;
  const Shape& s;
  const int64_t context, q_size, kv_size;
  int64_t position = 0;
  const ActScale act_scale = act_scale_setting();
  size_t kv_bytes;  // of one cached value
  Pages cache;      // [layers][2: k, v][kv heads][context][head_dim]
  const Lora* lora = nullptr;
  Floats x, normed, q, k, v, mixed, gate, up, delta, cosine, sine, hidden, logits;
  Floats low_rank, change;
  Activations activations;

  Impl(Model& m, int n)
      : model(m), kernels(m.kernels), s(m.shape), context(n), q_size(int64_t{s.n_heads} * s.head_dim),
        kv_size(int64_t{s.n_kv_heads} * s.head_dim), kv_bytes(m.kv_fp32 ? 4 : 2),
        cache(static_cast<size_t>(int64_t{s.n_layers} * 2 * kv_size * context) * kv_bytes, false) {
    grow(hidden, s.hidden);
    grow(logits, s.n_vocab);
  }

  uint8_t* cached(int layer, int side, int64_t head) const {
    return cache.data() +
           static_cast<size_t>(((int64_t{layer} * 2 + side) * s.n_kv_heads + head) * context * s.head_dim) * kv_bytes;
  }

  // body(its keys, then its values) of every KV head, layer by layer.
  template <class F>
  void each_head(F&& body) const {
    for (int layer = 0; layer < s.n_layers; layer++)
      for (int side = 0; side < 2; side++)
        for (int64_t head = 0; head < s.n_kv_heads; head++) body(cached(layer, side, head));
  }

  // body(token) for every token, on all threads where there are several.
  template <class F>
  void each_token(int64_t tokens, F&& body) {
    if (tokens == 1) return body(0);
    model.pool.run(tokens, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) body(t);
    });
  }

  void quantise(const float* input, int64_t tokens, const Linear& to) {
    activations.shape(tokens, to.k, to.group, act_scale == ActScale::kGroup && to.groups > 1);
    if (act_scale != ActScale::kTile64 || tokens == 1) {
      each_token(tokens, [&](int64_t t) {
        kernels.measure(input + t * to.k, t, activations);
        kernels.quantise(input + t * to.k, t, activations);
      });
      return;
    }
    each_token(tokens, [&](int64_t t) { kernels.measure(input + t * to.k, t, activations); });
    for (int64_t begin = 0; begin < tokens; begin += kTile64) {
      const auto from = activations.amax.begin() + begin, to_end = from + std::min(kTile64, tokens - begin);
      std::fill(from, to_end, *std::max_element(from, to_end));
    }
    each_token(tokens, [&](int64_t t) { kernels.quantise(input + t * to.k, t, activations); });
  }

  // One input to several layers at once, each block of rows on the thread that is free.
  void linear(const float* input, int64_t tokens, std::initializer_list<Job> jobs) {
    const Linear& first = *jobs.begin()->linear;
    const bool quantised = first.type == GgmlType::I8;
    if (quantised) {
      quantise(input, tokens, first);
    }
    int64_t total = 0;
    for (const Job& job : jobs) total += quantised ? job.linear->blocks() : job.linear->n;
    model.pool.run(total, quantised ? 4 : 16, [&](int64_t begin, int64_t end) {
      for (const Job& job : jobs) {
        const int64_t size = quantised ? job.linear->blocks() : job.linear->n;
        const int64_t from = std::max<int64_t>(begin, 0), to = std::min(end, size);
        if (from < to) {
          if (quantised)
            kernels.linear_i8(*job.linear, activations, from, to, job.y, job.stride);
          else
            kernels.linear_float(*job.linear, input, tokens, from, to, job.y, job.stride);
        }
        begin -= size;
        end -= size;
      }
    });
    if (!lora) return;
    for (const Job& job : jobs)
      if (const LoraPair* pair = lora->find(*job.linear)) adapt(*pair, input, tokens, job);
  }

  void adapt(const LoraPair& pair, const float* input, int64_t tokens, const Job& job) {
    const int64_t rank = pair.a.n, n = pair.b.n;
    grow(low_rank, tokens * rank);
    grow(change, tokens * n);
    each_token(tokens, [&](int64_t t) {
      kernels.linear_float(pair.a, input + t * pair.a.k, 1, 0, rank, &low_rank[static_cast<size_t>(t * rank)], rank);
    });
    model.pool.run(n, 16, [&](int64_t begin, int64_t end) {
      kernels.linear_float(pair.b, low_rank.data(), tokens, begin, end, change.data(), n);
      for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = begin; i < end; i++)
          job.y[t * job.stride + i] += pair.scale * change[static_cast<size_t>(t * n + i)];
    });
  }

  // Rows of the embedding in float32, [tokens][hidden].
  void embed(const int32_t* ids, int64_t tokens, float* out) const {
    for (int64_t t = 0; t < tokens; t++, out += s.hidden) {
      if (ids[t] < 0 || ids[t] >= s.n_vocab)
        throw Error("token id " + std::to_string(ids[t]) + " is outside the vocabulary of " +
                    std::to_string(s.n_vocab));
      const int64_t row = int64_t{ids[t]} * s.hidden;
      if (model.embedding->type == GgmlType::F32)
        std::memcpy(out, reinterpret_cast<const float*>(model.embedding->data) + row,
                    static_cast<size_t>(s.hidden) * sizeof(float));
      else
        kernels.from_f16(reinterpret_cast<const uint16_t*>(model.embedding->data) + row, out, s.hidden);
    }
  }

  void begin(const int32_t* ids, int64_t tokens) {
    grow(x, tokens * s.hidden);
    embed(ids, tokens, x.data());
  }

  void rotate_tables(int64_t tokens) {
    const int64_t half = s.head_dim / 2;
    grow(cosine, tokens * half);
    grow(sine, tokens * half);
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t i = 0; i < half; i++) {
        const double angle = static_cast<double>(position + t) * model.inverse_frequencies[static_cast<size_t>(i)];
        cosine[static_cast<size_t>(t * half + i)] = static_cast<float>(std::cos(angle));
        sine[static_cast<size_t>(t * half + i)] = static_cast<float>(std::sin(angle));
      }
  }

  // RoPE on one token's heads, and its keys and values into the cache.
  void place(int layer, int64_t t) {
    const int64_t dim = s.head_dim, slot = (position + t) % context;
    const float *c = &cosine[static_cast<size_t>(t * dim / 2)], *n = &sine[static_cast<size_t>(t * dim / 2)];
    for (int h = 0; h < s.n_heads; h++) kernels.rope(&q[static_cast<size_t>(t * q_size + h * dim)], c, n, dim / 2);
    for (int h = 0; h < s.n_kv_heads; h++) {
      float *key = &k[static_cast<size_t>(t * kv_size + h * dim)],
            *value = &v[static_cast<size_t>(t * kv_size + h * dim)];
      kernels.rope(key, c, n, dim / 2);
      store(key, cached(layer, 0, h), slot);
      store(value, cached(layer, 1, h), slot);
    }
  }

  void store(const float* from, uint8_t* head, int64_t slot) {
    uint8_t* to = head + static_cast<size_t>(slot * s.head_dim) * kv_bytes;
    if (model.kv_fp32)
      std::memcpy(to, from, static_cast<size_t>(s.head_dim) * kv_bytes);
    else
      kernels.to_f16(from, reinterpret_cast<uint16_t*>(to), s.head_dim);
  }

  void attention(int layer, int64_t tokens) {
    const int64_t shared = s.n_heads / s.n_kv_heads, dim = s.head_dim;
    auto body = [&](int64_t begin, int64_t end) {
      thread_local Floats scores;
      for (int64_t i = begin; i < end; i++) {
        const int64_t h = i / tokens, t = i % tokens;
        const int64_t length = std::min(position + t + 1, context);
        grow(scores, length + 16);
        KvView kv{cached(layer, 0, h / shared),
                  cached(layer, 1, h / shared),
                  (position + t + 1 - length) % context,
                  length,
                  context,
                  dim,
                  model.kv_fp32};
        kernels.attend(&q[static_cast<size_t>(t * q_size + h * dim)], kv,
                       &mixed[static_cast<size_t>(t * q_size + h * dim)], scores.data());
      }
    };
    const int64_t work = tokens * s.n_heads;
    if (work * std::min(position + tokens, context) * dim < kWorthThreads)
      body(0, work);
    else
      model.pool.run(work, 1, body);
  }

  void block(int layer, int64_t tokens) {
    const Layer& l = model.layers[static_cast<size_t>(layer)];
    auto norm = [&](const float* gain) {
      each_token(tokens, [&](int64_t t) {
        kernels.rms_norm(&x[static_cast<size_t>(t * s.hidden)], gain, &normed[static_cast<size_t>(t * s.hidden)],
                         s.hidden, s.norm_eps);
      });
    };
    norm(l.attn_norm);
    linear(normed.data(), tokens, {{&l.q, q.data(), q_size}, {&l.k, k.data(), kv_size}, {&l.v, v.data(), kv_size}});
    each_token(tokens, [&](int64_t t) { place(layer, t); });
    attention(layer, tokens);
    linear(mixed.data(), tokens, {{&l.output, delta.data(), s.hidden}});
    kernels.add(delta.data(), x.data(), tokens * s.hidden);
    norm(l.ffn_norm);
    linear(normed.data(), tokens, {{&l.gate, gate.data(), s.intermediate}, {&l.up, up.data(), s.intermediate}});
    each_token(tokens, [&](int64_t t) {
      const auto at = static_cast<size_t>(t * s.intermediate);
      kernels.swiglu(&gate[at], &up[at], &gate[at], s.intermediate);
    });
    linear(gate.data(), tokens, {{&l.down, delta.data(), s.hidden}});
    kernels.add(delta.data(), x.data(), tokens * s.hidden);
  }

  void room(int64_t tokens) {
    grow(x, tokens * s.hidden);
    grow(normed, tokens * s.hidden);
    grow(delta, tokens * s.hidden);
    grow(q, tokens * q_size);
    grow(mixed, tokens * q_size);
    grow(k, tokens * kv_size);
    grow(v, tokens * kv_size);
    grow(gate, tokens * s.intermediate);
    grow(up, tokens * s.intermediate);
    rotate_tables(tokens);
  }

  // x holds the input of `tokens` tokens; afterwards the output of the last block, and position has moved on.
  void forward(int64_t tokens) {
    room(tokens);
    for (int i = 0; i < s.n_layers; i++) block(i, tokens);
    position += tokens;
  }

  // Where the ring wraps, a chunk would overwrite keys that its own first tokens still look at.
  int64_t next_chunk(int64_t left, size_t chunk) const {
    const int64_t most = std::min(left, static_cast<int64_t>(std::max<size_t>(chunk, 1)));
    return position + most > context ? 1 : most;
  }

  // The output norm of every token just evaluated, tokens x hidden.
  void norm_all(int64_t tokens, float* out) {
    for (int64_t t = 0; t < tokens; t++)
      kernels.rms_norm(&x[static_cast<size_t>(t * s.hidden)], model.output_norm, out + t * s.hidden, s.hidden,
                       s.norm_eps);
  }

  const float* last_logits(int64_t tokens) {
    kernels.rms_norm(&x[static_cast<size_t>((tokens - 1) * s.hidden)], model.output_norm, hidden.data(), s.hidden,
                     s.norm_eps);
    linear(hidden.data(), 1, {{&model.output, logits.data(), s.n_vocab}});
    return logits.data();
  }
};

Session::Session(Model& model, int context) : impl_(std::make_unique<Impl>(model, std::max(context, 1))) {}
Session::~Session() = default;
void Session::reset() { impl_->position = 0; }
void Session::use(const Lora* lora) { impl_->lora = lora; }
int64_t Session::position() const { return impl_->position; }
size_t Session::kv_token_bytes() const {
  const Impl& m = *impl_;
  return static_cast<size_t>(int64_t{m.s.n_layers} * 2 * m.kv_size) * m.kv_bytes;
}
uint32_t Session::act_scale() const { return static_cast<uint32_t>(impl_->act_scale); }

// Tiles are counted from where an evaluation starts.
int64_t Session::reusable(int64_t n) const { return impl_->act_scale == ActScale::kTile64 ? n / kTile64 * kTile64 : n; }

std::vector<uint8_t> Session::save_kv(int64_t tokens) const {
  const Impl& m = *impl_;
  std::vector<uint8_t> kv;
  kv.reserve(static_cast<size_t>(tokens) * kv_token_bytes());
  m.each_head([&](const uint8_t* head) {
    kv.insert(kv.end(), head, head + static_cast<size_t>(tokens * m.s.head_dim) * m.kv_bytes);
  });
  return kv;
}

void Session::load_kv(const std::vector<uint8_t>& kv, int64_t stored, int64_t tokens) {
  Impl& m = *impl_;
  m.position = tokens;
  if (tokens == 0) return;  // of a cache of no tokens there is no data() either
  const size_t row = static_cast<size_t>(m.s.head_dim) * m.kv_bytes;
  const uint8_t* from = kv.data();
  m.each_head([&](uint8_t* head) {
    std::memcpy(head, from, static_cast<size_t>(tokens) * row);
    from += static_cast<size_t>(stored) * row;
  });
}

void Session::embed(const int32_t* ids, size_t n, float* out) const { impl_->embed(ids, static_cast<int64_t>(n), out); }

const float* Session::last_hidden() const { return impl_->hidden.data(); }

const float* Session::eval(const int32_t* ids, size_t n, float* all_hidden) {
  int64_t tokens = 0;
  for (size_t done = 0; done < n; done += static_cast<size_t>(tokens)) {
    tokens = impl_->next_chunk(static_cast<int64_t>(n - done), chunk);
    impl_->begin(ids + done, tokens);
    impl_->forward(tokens);
    if (all_hidden) impl_->norm_all(tokens, all_hidden + done * static_cast<size_t>(impl_->s.hidden));
  }
  return impl_->last_logits(tokens);
}

const float* Session::eval_embeddings(const float* x, size_t n, float* all_hidden) {
  int64_t tokens = 0;
  for (size_t done = 0; done < n; done += static_cast<size_t>(tokens)) {
    tokens = impl_->next_chunk(static_cast<int64_t>(n - done), chunk);
    const int64_t size = tokens * impl_->s.hidden;
    grow(impl_->x, size);
    std::memcpy(impl_->x.data(), x + done * static_cast<size_t>(impl_->s.hidden),
                static_cast<size_t>(size) * sizeof(float));
    impl_->forward(tokens);
    if (all_hidden) impl_->norm_all(tokens, all_hidden + done * static_cast<size_t>(impl_->s.hidden));
  }
  return impl_->last_logits(tokens);
}

void Session::eval_all(const int32_t* ids, size_t n, float* logits) {
  Impl& m = *impl_;
  int64_t tokens = 0;
  for (size_t done = 0; done < n; done += static_cast<size_t>(tokens)) {
    tokens = m.next_chunk(static_cast<int64_t>(n - done), chunk);
    m.begin(ids + done, tokens);
    m.forward(tokens);
    m.norm_all(tokens, m.normed.data());
    m.linear(m.normed.data(), tokens,
             {{&m.model.output, logits + done * static_cast<size_t>(m.s.n_vocab), m.s.n_vocab}});
  }
}

void Session::run_layer(int layer, const float* x, size_t n, float* y) {
  Impl& m = *impl_;
  const auto tokens = static_cast<int64_t>(n);
  m.room(tokens);
  std::memcpy(m.x.data(), x, n * static_cast<size_t>(m.s.hidden) * sizeof(float));
  m.block(layer, tokens);
  std::memcpy(y, m.x.data(), n * static_cast<size_t>(m.s.hidden) * sizeof(float));
}

void Session::run_linear(const Linear& layer, const float* x, size_t n, float* y) {
  impl_->linear(x, static_cast<int64_t>(n), {{&layer, y, layer.n}});
}

}  // namespace rksim
