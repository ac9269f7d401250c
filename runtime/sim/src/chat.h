// How a text becomes a turn of a conversation: the model's own chat template in the parts that the converter found
// (rksim.chat.* in docs/sim-gguf.md), or the texts that a caller put in its place.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "gguf.h"

namespace rksim {

struct Turn {
  enum Place { kFirst, kAfterSystem, kLater, kInside };  // inside: it goes on in the middle of a paused answer

  std::string text;
  bool of_tool = false, thinking = false;
  Place place = kFirst;
};

class Chat {
 public:
  Chat() = default;                 // takes texts as they are
  explicit Chat(const Gguf& file);  // Throws Error where the keys do not fit together.

  // Instead of the model's own; three empty texts: turns are taken as they are. Ends `thinking` and tools.
  void replace(std::string system, std::string prefix, std::string postfix);
  // `list`: JSON. Throws Error where this template has no place for tools, or the list is none.
  void set_tools(const std::string& system, const std::string& list, std::string tag);

  // The turn's whole text. Throws Error where there is no template, or a tool's answer is no JSON.
  std::string render(const Turn& turn) const;
  std::string beginning() const;  // what stands in front of the first turn: the system prompt
  // The token that ended an answer stands in front of the next turn by itself, and is not part of its text.
  bool wants_end_token() const { return source_ != Source::kNative; }

 private:
  enum class Source { kNone, kNative, kGiven, kEmpty };

  Source source_ = Source::kEmpty;
  std::string refused_;                    // why there is none
  std::string system_, prefix_, postfix_;  // in front of all, before and after each text
  std::optional<std::string> thinking_;    // after it, where the model is to think; none: it is not asked
  std::string between_;                    // after an answer
  std::vector<std::string> tool_parts_;    // before the system prompt, between it and the tools, between two, after
  std::string tag_;                        // around what a tool gives back
};

}  // namespace rksim
