// Byte-pair merging by rank, with the order and the ties of Hugging Face's tokenizers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace rksim {

// (left id, right id) -> rank and merged id; open addressing, since every character of every text asks it twice.
class MergeTable {
 public:
  struct Merge {
    uint64_t pair = kEmpty;
    uint32_t rank = 0;
    int32_t id = 0;
  };
  void reserve(size_t count);                                        // before the first add
  void add(int32_t left, int32_t right, uint32_t rank, int32_t id);  // the last of several for a pair holds
  const Merge* find(int32_t left, int32_t right) const;              // nullptr: the two do not merge

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  size_t slot(uint64_t pair) const;
  std::vector<Merge> slots_ = std::vector<Merge>(1);
};

// The ids of a word's smallest parts in, the ids of the word out. Keeps its memory from word to word.
class Merger {
 public:
  explicit Merger(const MergeTable& table) : table_(table) {}
  std::vector<int32_t> parts;  // fill this, then call append_to, which empties it
  void append_to(std::vector<int32_t>& ids);

 private:
  struct Symbol {
    int32_t id;
    uint32_t previous, next;
  };
  struct Candidate {
    uint32_t rank, at;
    int32_t id;
    // Of the std heap's point of view the best is the greatest: the lowest rank, then the leftmost.
    bool operator<(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
  };
  void consider(uint32_t at);
  void merge_all();
  const MergeTable& table_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

}  // namespace rksim
