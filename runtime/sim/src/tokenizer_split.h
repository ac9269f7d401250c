// Where a text is cut before byte-pair merging: at added tokens, then into words by a family's pre-tokeniser.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace rksim {

enum class Pre { Gpt2, Smollm, LlamaBpe, Qwen2, Tekken, Gpt4o };

std::optional<Pre> pre_by_name(std::string_view name);

// Calls `word` with every piece of `text` (valid UTF-8), in order; the pieces joined are `text`.
void split_words(Pre pre, std::string_view text, const std::function<void(std::string_view)>& word);

// Finds added tokens in a text: leftmost first, of several the longest.
class AddedTokens {
 public:
  void add(std::string_view text, int32_t id);  // the empty text is never found
  bool empty() const { return children_.empty(); }
  struct Match {
    size_t begin, end;
    int32_t id;
  };
  // The first match that begins at byte `from` or after.
  std::optional<Match> find(std::string_view text, size_t from) const;

  // Tokens that take the spaces before or after them along.
  std::unordered_set<int32_t> strip_left, strip_right;

 private:
  std::optional<Match> match_at(std::string_view text, size_t at) const;
  std::array<bool, 256> begins_{};                   // with this byte
  std::vector<int32_t> id_{-1};                      // of the token that ends in a node of the trie, else -1
  std::unordered_map<uint64_t, uint32_t> children_;  // (node, byte) -> node
};

}  // namespace rksim
