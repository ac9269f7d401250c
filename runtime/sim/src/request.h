// One run as its caller asked for it, copied: an asynchronous one goes on after the call that began it.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "sampler.h"

namespace rksim {

class Lora;

enum class InputType { kPrompt, kToken, kEmbed, kMultimodal };
enum class Mode { kGenerate, kHidden, kLogits };

// The texts around an image and, on a board, in the place of each of its embeddings.
struct Frame {
  std::string start, content, end;
};

// What stands where `mark` is in a multimodal prompt: `size` embeddings of each of `count` images, or clips.
struct Media {
  std::string mark, what, size_name, content_name;  // "<image>", "image", and its caller's names of the other two
  Frame frame;
  size_t size = 0;
  std::optional<size_t> count;    // none: the prompt's marks share the embeddings evenly, `size` is of all together
  std::vector<float> embeddings;  // [count][size][hidden]; more than the context holds are not copied
};

struct Request {
  InputType type = InputType::kPrompt;
  Mode mode = Mode::kGenerate;
  void* userdata = nullptr;
  std::string prompt;             // of text and of text with images
  size_t tokens = 0;              // of ids or embeddings; more than the context holds are not copied
  std::vector<int32_t> ids;       // [tokens]
  std::vector<float> embeddings;  // [tokens][hidden]
  std::vector<Media> media;
  const Lora* lora = nullptr;  // of the runtime's own; nullptr: the model alone
  std::string save_cache;      // where the prompt's keys and values go; empty: nowhere

  bool keep_history = false;  // the next run goes on where this one ends
  bool of_tool = false;       // the prompt is what a tool gave back, as JSON
  bool thinking = false;
  std::optional<SamplerParams> sampling;  // none: that of the handle
  std::optional<int> max_new_tokens;
};

// One for each sequence of the handle. What holds for a whole run is read off the first.
using Requests = std::vector<Request>;

}  // namespace rksim
