#include "data/chat/chat_template.h"

#include "data/chat/check.h"
#include "data/chat/interpreter.h"
#include "data/chat/parser.h"
#include "data/chat/scopes.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

std::string checked_text(const std::string& text) {
  if (!unicode::is_valid_utf8(text)) chat::fault("a text among the variables is not valid UTF-8");
  return text;
}

chat::Value from_json(const nlohmann::ordered_json& json, int depth);

chat::Dict dict_from_json(const nlohmann::ordered_json& json, int depth) {
  chat::Dict dict;
  for (const auto& [key, value] : json.items())
    dict.set(chat::Value(checked_text(key)), from_json(value, depth + 1));
  return dict;
}

chat::Value from_json(const nlohmann::ordered_json& json, int depth) {
  using Type = nlohmann::ordered_json::value_t;
  chat::checked_depth(depth);
  switch (json.type()) {
    case Type::null:
      return chat::Value();
    case Type::boolean:
      return chat::Value(json.get<bool>());
    case Type::number_integer:
      return chat::Value(chat::Int{json.get<int64_t>()});
    case Type::number_unsigned:
      return chat::Value(chat::Int{json.get<uint64_t>()});
    case Type::number_float:
      return chat::Value(json.get<double>());
    case Type::string:
      return chat::Value(checked_text(json.get_ref<const std::string&>()));
    case Type::object:
      return chat::Value(std::make_shared<const chat::Dict>(dict_from_json(json, depth)));
    case Type::array: {
      std::vector<chat::Value> items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(from_json(item, depth + 1));
      return chat::make_list(std::move(items));
    }
    default:
      chat::fault("a variable is neither a JSON value nor a container of some");
  }
}

}  // namespace

struct ChatTemplate::Impl {
  chat::Origin origin;
  chat::Block block;
  chat::Checked checked;
  std::vector<std::string> declared;
};

ChatTemplate ChatTemplate::parse(std::string_view source, std::string name) {
  auto impl = std::make_unique<Impl>();
  impl->origin.name = std::move(name);
  impl->block = chat::parse_template(source, impl->origin);
  impl->checked = chat::check_template(impl->block, impl->origin);
  impl->declared = chat::declare_names(impl->block);
  return ChatTemplate(std::move(impl));
}

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

bool ChatTemplate::marks_generation() const {
  return impl_->checked.marks_generation;
}

ChatTemplate::Rendered ChatTemplate::render(const nlohmann::ordered_json& variables) const {
  if (!variables.is_object())
    impl_->origin.refuse(1, "the variables must be a JSON object, got {}", variables.type_name());
  chat::Dict values;
  try {
    values = dict_from_json(variables, 0);
  } catch (const chat::Fault& fault) {
    impl_->origin.refuse(1, "{}", fault.message);
  }
  chat::Interpreter interpreter(values);
  try {
    interpreter.run(impl_->block, impl_->declared);
  } catch (const chat::Fault& fault) {
    impl_->origin.refuse(interpreter.line(), "{}", fault.message);
  }
  return {interpreter.take_text(), interpreter.take_generated()};
}

}  // namespace hearth
