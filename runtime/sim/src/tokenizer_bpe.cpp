#include "tokenizer_bpe.h"

#include <algorithm>

namespace rksim {
namespace {
constexpr uint32_t kNone = UINT32_MAX;
constexpr int32_t kGone = -1;

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}
}  // namespace

void MergeTable::reserve(size_t count) {
  size_t size = 2;
  while (size < 2 * count) size *= 2;
  slots_.assign(size, {});
}

size_t MergeTable::slot(uint64_t pair) const {
  uint64_t hash = pair * 0x9E3779B97F4A7C15u;
  size_t at = (hash ^ hash >> 32) & (slots_.size() - 1);
  while (slots_[at].pair != pair && slots_[at].pair != kEmpty) at = (at + 1) & (slots_.size() - 1);
  return at;
}

void MergeTable::add(int32_t left, int32_t right, uint32_t rank, int32_t id) {
  uint64_t pair = pair_of(left, right);
  slots_[slot(pair)] = {pair, rank, id};
}

const MergeTable::Merge* MergeTable::find(int32_t left, int32_t right) const {
  const Merge& found = slots_[slot(pair_of(left, right))];
  return found.pair == kEmpty ? nullptr : &found;
}

void Merger::append_to(std::vector<int32_t>& ids) {
  if (parts.size() > 1) {
    merge_all();
    for (uint32_t at = 0; at != kNone; at = symbols_[at].next) ids.push_back(symbols_[at].id);
  } else {
    ids.insert(ids.end(), parts.begin(), parts.end());
  }
  parts.clear();
}

void Merger::consider(uint32_t at) {
  const Symbol& left = symbols_[at];
  if (const MergeTable::Merge* merge = table_.find(left.id, symbols_[left.next].id)) {
    heap_.push_back({merge->rank, at, merge->id});
    std::push_heap(heap_.begin(), heap_.end());
  }
}

void Merger::merge_all() {
  auto n = static_cast<uint32_t>(parts.size());
  symbols_.clear();
  heap_.clear();
  for (uint32_t i = 0; i < n; i++) symbols_.push_back({parts[i], i ? i - 1 : kNone, i + 1 < n ? i + 1 : kNone});
  for (uint32_t i = 0; i + 1 < n; i++) consider(i);
  while (!heap_.empty()) {
    Candidate best = heap_.front();
    std::pop_heap(heap_.begin(), heap_.end());
    heap_.pop_back();
    Symbol& left = symbols_[best.at];
    if (left.id == kGone || left.next == kNone) continue;
    Symbol& right = symbols_[left.next];
    // The pair may have changed since. What counts is what it makes, not its rank: so do tokenizers.
    const MergeTable::Merge* now = table_.find(left.id, right.id);
    if (!now || now->id != best.id) continue;
    left.id = best.id;
    right.id = kGone;
    left.next = right.next;
    if (left.next != kNone) symbols_[left.next].previous = best.at;
    if (left.previous != kNone) consider(left.previous);
    if (left.next != kNone) consider(best.at);
  }
}

}  // namespace rksim
