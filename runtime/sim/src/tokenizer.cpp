#include "tokenizer.h"

#include <algorithm>

#include "error.h"
#include "tokenizer_impl.h"
#include "unicode.h"

namespace rksim {
namespace {

// Normalisation may make a text longer; offsets are 32 bits wide.
constexpr size_t kMaxBytes = size_t{1} << 29;

}  // namespace

// One call of encode: the parts between added tokens go through it in order.
class Tokenizer::Encoder {
 public:
  Encoder(const Impl& t, bool parse_special) : t_(t), merger_(t.merges), parse_special_(parse_special) {}
  std::vector<int32_t> ids;

  // `first`: nothing stands before it.
  void text(std::string_view whole, bool first) {
    split(t_.added, whole, [&](std::string_view part, bool begin) { between(part, first && begin); });
  }

 private:
  // Cuts a text at the tokens in it, whose ids are written, and hands on what stands between them.
  template <typename Between>
  void split(const AddedTokens& tokens, std::string_view text, Between between) {
    size_t start = 0;
    for (size_t from = 0; auto match = tokens.find(text, from);) {
      from = match->end;  // as in tokenizers, a token may begin in the spaces that the one before it takes along
      if (t_.is_special(static_cast<size_t>(match->id)) && !parse_special_) continue;
      size_t end = match->begin;
      if (tokens.strip_left.count(match->id)) end = std::max(start, unicode::before_spaces(text, end));
      if (start < end) between(text.substr(start, end - start), start == 0);
      ids.push_back(match->id);
      start = tokens.strip_right.count(match->id) ? unicode::after_spaces(text, from) : from;
    }
    if (start < text.size()) between(text.substr(start), start == 0);
  }

  void between(std::string_view text, bool first) {
    if (t_.byte_level) {
      text = t_.normalise(text, buffer_);
      if (t_.normalised.empty()) return words(text);
      return split(t_.normalised, text, [this](std::string_view part, bool) { words(part); });
    }
    if (t_.normalised.empty()) return sentence(text, first);
    if (t_.lead == Impl::Lead::Always || t_.lead == Impl::Lead::None) {
      text = t_.normalise(text, buffer_);
      return split(t_.normalised, text, [this](std::string_view part, bool) { characters(part); });
    }
    split(t_.normalised, text, [&](std::string_view part, bool begin) { sentence(part, first && begin); });
  }

  void words(std::string_view text) {
    split_words(t_.pre, text, [this](std::string_view w) { word(w); });
  }

  void word(std::string_view text) {
    if (auto whole = t_.whole_words.find(text); whole != t_.whole_words.end()) return ids.push_back(whole->second);
    for (char c : text)
      if (int32_t id = t_.byte_ids[static_cast<uint8_t>(c)]; id >= 0) merger_.parts.push_back(id);
    merger_.append_to(ids);
  }

  // SentencePiece-style: the whole part is one word, its spaces marks.
  void sentence(std::string_view text, bool first) {
    bool spaced = text[0] == ' ' || text.substr(0, kSpaceMark.size()) == kSpaceMark;
    if (t_.lead == Impl::Lead::Always || (t_.lead == Impl::Lead::UnlessSpace && !spaced) ||
        (t_.lead == Impl::Lead::FirstUnlessSpace && !spaced && first))
      character(kSpaceMark, kMark);
    characters(text);
  }

  void characters(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
      unicode::Decoded c = unicode::decode(text, at);
      c.cp == ' ' ? character(kSpaceMark, kMark) : character(text.substr(at, c.length), c.cp);
      at += c.length;
    }
    known();
    merger_.append_to(ids);
  }

  void character(std::string_view text, uint32_t cp) {
    if (auto found = t_.char_ids.find(cp); found != t_.char_ids.end()) {
      known();
      return merger_.parts.push_back(found->second);
    }
    auto has_id = [&](char c) { return t_.byte_ids[static_cast<uint8_t>(c)] >= 0; };
    if (std::all_of(text.begin(), text.end(), has_id)) {
      for (char c : text) merger_.parts.push_back(t_.byte_ids[static_cast<uint8_t>(c)]);
    } else {
      unknown_ = true;
    }
  }

  // Unknown characters become one token, written when something known follows.
  void known() {
    if (unknown_ && t_.unknown >= 0) merger_.parts.push_back(t_.unknown);
    unknown_ = false;
  }

  static constexpr uint32_t kMark = 0x2581;
  const Impl& t_;
  Merger merger_;
  bool parse_special_, unknown_ = false;
  std::string buffer_;
};

std::string_view Tokenizer::Impl::normalise(std::string_view text, std::string& buffer) const {
  if (byte_level) return nfc ? unicode::nfc(text, buffer) : text;
  if (lead != Lead::Always && lead != Lead::None) return text;  // Metaspace, which is no normaliser
  buffer = lead == Lead::Always ? kSpaceMark : "";
  for (char c : text) c == ' ' ? buffer += kSpaceMark : buffer += c;
  return buffer;
}

Tokenizer::Tokenizer(const Gguf& file) : impl_(std::make_unique<Impl>(file)) {}
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_bos, bool parse_special, bool first) const {
  if (text.size() > kMaxBytes) throw Error("a text of more than 512 MB cannot be tokenised at once; split it");
  std::string buffer;
  text = unicode::valid_utf8(text, buffer);
  Encoder encoder(*impl_, parse_special);
  if (add_bos && impl_->bos >= 0) encoder.ids.push_back(impl_->bos);
  encoder.text(text, first);
  return std::move(encoder.ids);
}

std::string_view Tokenizer::piece(int32_t id, bool skip_special) const {
  if (id < 0 || id >= size() || (skip_special && is_special(id))) return {};
  auto at = static_cast<size_t>(id);
  return std::string_view(impl_->bytes).substr(impl_->ends[at], impl_->ends[at + 1] - impl_->ends[at]);
}

std::string Tokenizer::decode(const int32_t* ids, size_t n, bool skip_special) const {
  std::string text;
  for (size_t i = 0; i < n; i++) text += piece(ids[i], skip_special);
  if (drops_first_space() && !text.empty() && text[0] == ' ') text.erase(0, 1);
  return text;
}

int32_t Tokenizer::size() const { return static_cast<int32_t>(impl_->n); }
int32_t Tokenizer::bos_id() const { return impl_->bos; }
int32_t Tokenizer::eos_id() const { return impl_->eos; }
bool Tokenizer::add_bos() const { return impl_->add_bos; }
bool Tokenizer::drops_first_space() const { return impl_->lead != Impl::Lead::None; }

bool Tokenizer::ends_answer(int32_t id) const {
  const auto& ends = impl_->ends_of_answer;
  return std::find(ends.begin(), ends.end(), id) != ends.end();
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < size() && impl_->is_special(static_cast<size_t>(id));
}

}  // namespace rksim
