// A Session: one sequence over a Transformer.
#include <algorithm>
#include <cstring>

#include "error.h"
#include "lora.h"
#include "transformer.h"

namespace rksim {

struct Session::Impl {
  Transformer net;
  std::vector<float> hidden, logits;  // of the last token: [hidden] after the output norm, [n_vocab]

  Impl(Model& model, int context)
      : net(model, context), hidden(static_cast<size_t>(model.shape.hidden)),
        logits(static_cast<size_t>(model.shape.n_vocab)) {}

  // body(its keys, then its values) of every KV head, layer by layer.
  template <class F>
  void each_head(F&& body) const {
    for (int layer = 0; layer < net.shape.n_layers; layer++)
      for (int side = 0; side < 2; side++)
        for (int64_t head = 0; head < net.shape.n_kv_heads; head++) body(net.cached(layer, side, head));
  }

  // The output norm of every token just evaluated, [tokens][hidden].
  void norm_all(int64_t tokens, float* out) const {
    const int64_t size = net.shape.hidden;
    for (int64_t t = 0; t < tokens; t++)
      net.norm(net.model.output_norm, &net.x[static_cast<size_t>(t * size)], out + t * size, size);
  }

  const float* last_logits(int64_t tokens) {
    const int64_t size = net.shape.hidden;
    net.norm(net.model.output_norm, &net.x[static_cast<size_t>((tokens - 1) * size)], hidden.data(), size);
    net.logits(hidden.data(), 1, logits.data());
    return logits.data();
  }

  // n tokens, chunk by chunk; input(done, tokens) puts the next into net.x.
  template <class F>
  const float* eval(size_t n, size_t chunk, float* all_hidden, F&& input) {
    int64_t tokens = 0;
    for (size_t done = 0; done < n; done += static_cast<size_t>(tokens)) {
      tokens = net.next_chunk(static_cast<int64_t>(n - done), chunk);
      input(done, tokens);
      net.forward(tokens);
      if (all_hidden) norm_all(tokens, all_hidden + done * static_cast<size_t>(net.shape.hidden));
    }
    return last_logits(tokens);
  }
};

Session::Session(Model& model, int context) : impl_(std::make_unique<Impl>(model, std::max(context, 1))) {}
Session::~Session() = default;
void Session::reset() { impl_->net.position = 0; }
void Session::rewind(int64_t position) { impl_->net.position = position; }
void Session::keep(int64_t positions) { impl_->net.kept = positions; }
void Session::use(const Lora* lora) { impl_->net.lora = lora; }
int64_t Session::position() const { return impl_->net.position; }
size_t Session::kv_token_bytes() const {
  const Transformer& net = impl_->net;
  return static_cast<size_t>(int64_t{net.shape.n_layers} * 2 * net.kv_size) * net.kv_bytes;
}
uint32_t Session::arithmetic() const {
  const Transformer& net = impl_->net;
  return static_cast<uint32_t>(net.act_scale) | (net.features.rope.is_long(net.context) ? kLongFactors : 0);
}

// Tiles are counted from where an evaluation starts.
int64_t Session::reusable(int64_t n) const {
  return impl_->net.act_scale == ActScale::kTile64 ? n / kTile64 * kTile64 : n;
}

std::vector<uint8_t> Session::save_kv(int64_t tokens) const {
  const size_t bytes = static_cast<size_t>(tokens * impl_->net.shape.head_dim) * impl_->net.kv_bytes;
  std::vector<uint8_t> kv;
  kv.reserve(static_cast<size_t>(tokens) * kv_token_bytes());
  impl_->each_head([&](const uint8_t* head) { kv.insert(kv.end(), head, head + bytes); });
  return kv;
}

void Session::load_kv(const std::vector<uint8_t>& kv, int64_t stored, int64_t tokens) {
  Transformer& net = impl_->net;
  net.position = tokens;
  if (tokens == 0) return;  // an empty cache has no address to copy from
  const size_t row = static_cast<size_t>(net.shape.head_dim) * net.kv_bytes;
  const uint8_t* from = kv.data();
  impl_->each_head([&](uint8_t* head) {
    std::memcpy(head, from, static_cast<size_t>(tokens) * row);
    from += static_cast<size_t>(stored) * row;
  });
}

void Session::embed(const int32_t* ids, size_t n, float* out) const {
  impl_->net.embed(ids, static_cast<int64_t>(n), out);
}

const float* Session::last_hidden() const { return impl_->hidden.data(); }

const float* Session::eval(const int32_t* ids, size_t n, float* all_hidden) {
  return impl_->eval(n, chunk, all_hidden,
                     [&](size_t done, int64_t tokens) { impl_->net.set_input(ids + done, tokens); });
}

const float* Session::eval_embeddings(const float* x, size_t n, float* all_hidden) {
  const auto size = static_cast<size_t>(impl_->net.shape.hidden);
  return impl_->eval(n, chunk, all_hidden,
                     [&](size_t done, int64_t tokens) { impl_->net.set_input(x + done * size, tokens); });
}

void Session::logits_of(const float* hidden, size_t n, float* out) {
  impl_->net.logits(hidden, static_cast<int64_t>(n), out);
}

void Session::eval_all(const int32_t* ids, size_t n, float* logits, void (*progress)(size_t done)) {
  Transformer& net = impl_->net;
  int64_t tokens = 0;
  for (size_t done = 0; done < n; done += static_cast<size_t>(tokens)) {
    tokens = net.next_chunk(static_cast<int64_t>(n - done), chunk);
    net.set_input(ids + done, tokens);
    net.forward(tokens);
    impl_->norm_all(tokens, net.normed.data());
    net.logits(net.normed.data(), tokens, logits + done * static_cast<size_t>(net.shape.n_vocab));
    if (progress) progress(done + static_cast<size_t>(tokens));
  }
}

void Session::run_layer(int layer, const float* x, size_t n, float* y) {
  Transformer& net = impl_->net;
  const auto tokens = static_cast<int64_t>(n);
  net.make_room(tokens);
  net.set_input(x, tokens);
  net.layer(layer, tokens);
  std::memcpy(y, net.x.data(), n * static_cast<size_t>(net.shape.hidden) * sizeof(float));
}

void Session::run_linear(const Linear& layer, const float* x, size_t n, float* y) {
  impl_->net.linear(x, static_cast<int64_t>(n), {{&layer, y, layer.n}});
}

}  // namespace rksim
