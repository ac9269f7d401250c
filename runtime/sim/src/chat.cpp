#include "chat.h"

#include <utility>

#include "error.h"
#include "json.h"

namespace rksim {
namespace {

constexpr size_t kToolParts = 4;

std::string text_of(const Gguf& file, const char* key) { return std::string(file.need_string(key)); }

}  // namespace

Chat::Chat(const Gguf& file) : source_(Source::kNone) {
  if (const auto why = file.string("rksim.chat.refused")) {
    refused_ = *why;
    return;
  }
  if (!file.has("rksim.chat.postfix")) return;
  source_ = Source::kNative;
  system_ = text_of(file, "rksim.chat.system");
  prefix_ = text_of(file, "rksim.chat.prefix");
  postfix_ = text_of(file, "rksim.chat.postfix");
  between_ = text_of(file, "rksim.chat.between");
  if (const auto found = file.string("rksim.chat.thinking")) thinking_ = std::string(*found);
  if (const auto parts = file.strings("rksim.chat.tools")) {
    if (parts->size() != kToolParts)
      throw Error(file.path() + ": rksim.chat.tools has " + std::to_string(parts->size()) + " texts, not 4");
    tool_parts_.assign(parts->begin(), parts->end());
  }
}

void Chat::replace(std::string system, std::string prefix, std::string postfix) {
  source_ = system.empty() && prefix.empty() && postfix.empty() ? Source::kEmpty : Source::kGiven;
  system_ = std::move(system);
  prefix_ = std::move(prefix);
  postfix_ = std::move(postfix);
  between_.clear();
  thinking_.reset();
  tool_parts_.clear();
  tag_.clear();
}

void Chat::set_tools(const std::string& system, const std::string& list, std::string tag) {
  if (source_ != Source::kNative)
    throw Error("tools need the model's own chat template, and " +
                std::string(source_ == Source::kNone ? "it has none" : "another one was set"));
  if (tool_parts_.empty()) throw Error("the model's chat template has no place for tools that could be found");
  const auto tools = json::items(list);
  if (!tools) throw Error("tools is no JSON list of functions");
  std::string all;
  for (const std::string_view tool : *tools) all += (all.empty() ? "" : tool_parts_[2]) + std::string(tool);
  system_ = tool_parts_[0] + system + tool_parts_[1] + all + tool_parts_[3];
  tag_ = std::move(tag);
  if (tag_.size() > 2 && tag_.front() == '<' && tag_.back() == '>') tag_ = tag_.substr(1, tag_.size() - 2);
}

std::string Chat::beginning() const { return system_; }

std::string Chat::render(const Turn& turn) const {
  if (turn.place == Turn::kInside) return turn.text;
  if (source_ == Source::kNone)
    throw Error("this model has no chat template of its own" + (refused_.empty() ? "" : " (" + refused_ + ")") +
                ": give tokens, or set a chat template (three empty texts: prompts go in as they are)");
  if (turn.of_tool && !json::valid(turn.text)) throw Error("the input of the role tool is no JSON");
  if (source_ == Source::kEmpty) return turn.text;
  std::string text = turn.text;
  if (turn.of_tool && !tag_.empty()) text = "<" + tag_ + ">\n" + text + "\n</" + tag_ + ">";
  const std::string before = turn.place == Turn::kFirst ? system_ : turn.place == Turn::kLater ? between_ : "";
  return before + prefix_ + text + (turn.thinking && thinking_ ? *thinking_ : postfix_);
}

}  // namespace rksim
