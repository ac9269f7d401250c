#include "json.h"

namespace rksim::json {
namespace {

constexpr int kDeepest = 64;  // lists and objects inside each other

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  // One value, with nothing behind it. `items`: where the items of a list at the top are noted.
  bool whole(std::vector<std::string_view>* items = nullptr) {
    const bool good = value(0, items);
    space();
    return good && at_ == text_.size();
  }

 private:
  bool take(char c) {
    space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    at_++;
    return true;
  }

  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
      at_++;
  }

  bool word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }

  bool value(int depth, std::vector<std::string_view>* items) {
    space();
    if (depth > kDeepest || at_ >= text_.size()) return false;
    switch (text_[at_]) {
      case '[': return list(depth, items);
      case '{': return object(depth);
      case '"': return string();
      case 't': return word("true");
      case 'f': return word("false");
      case 'n': return word("null");
      default: return number();
    }
  }

  bool list(int depth, std::vector<std::string_view>* items) {
    at_++;
    if (take(']')) return true;
    do {
      space();
      const size_t begin = at_;
      if (!value(depth + 1, nullptr)) return false;
      if (items) items->push_back(text_.substr(begin, at_ - begin));
    } while (take(','));
    return take(']');
  }

  bool object(int depth) {
    at_++;
    if (take('}')) return true;
    do {
      space();
      if (at_ >= text_.size() || text_[at_] != '"' || !string() || !take(':') || !value(depth + 1, nullptr))
        return false;
    } while (take(','));
    return take('}');
  }

  bool string() {
    for (at_++; at_ < text_.size(); at_++) {
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') {
        at_++;
        return true;
      }
      if (c < 0x20) return false;
      if (c == '\\' && !escape()) return false;
    }
    return false;
  }

  // Leaves at_ on the last character of it.
  bool escape() {
    if (++at_ >= text_.size()) return false;
    if (text_[at_] != 'u') return std::string_view("\"\\/bfnrt").find(text_[at_]) != std::string_view::npos;
    for (int i = 0; i < 4; i++)
      if (++at_ >= text_.size() ||
          std::string_view("0123456789abcdefABCDEF").find(text_[at_]) == std::string_view::npos)
        return false;
    return true;
  }

  size_t digits() {
    const size_t begin = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') at_++;
    return at_ - begin;
  }

  bool number() {
    if (text_[at_] == '-') at_++;
    if (at_ < text_.size() && text_[at_] == '0')
      at_++;
    else if (!digits())
      return false;
    if (at_ < text_.size() && text_[at_] == '.') {
      at_++;
      if (!digits()) return false;
    }
    if (at_ >= text_.size() || (text_[at_] != 'e' && text_[at_] != 'E')) return true;
    at_++;
    if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) at_++;
    return digits() > 0;
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

bool valid(std::string_view text) { return Reader(text).whole(); }

std::optional<std::vector<std::string_view>> items(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \n\t\r");
  std::vector<std::string_view> found;
  if (begin == text.npos || text[begin] != '[' || !Reader(text).whole(&found)) return {};
  return found;
}

}  // namespace rksim::json
