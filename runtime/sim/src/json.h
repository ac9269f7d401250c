// As much of JSON as tool calls need: whether a text is some, and where the items of a list lie.
#pragma once
#include <optional>
#include <string_view>
#include <vector>

namespace rksim::json {

bool valid(std::string_view text);
// The items of a list as they are written; none where the text is no list, or no JSON.
std::optional<std::vector<std::string_view>> items(std::string_view text);

}  // namespace rksim::json
