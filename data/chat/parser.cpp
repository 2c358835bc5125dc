#include "data/chat/parser.h"

#include <algorithm>

#include "data/chat/expression_parser.h"

namespace hearth::chat {

namespace {

using StatementPtr = std::unique_ptr<Statement>;
using Names = std::initializer_list<std::string_view>;

constexpr int kMaxStatementDepth = 100;

class Parser {
 public:
  Parser(std::string_view source, const Origin& origin)
      : origin_(origin),
        tokens_(tokenize(source, origin), origin),
        expressions_(tokens_, [this](const std::string& name) { note_load(name); }) {}

  Block run() {
    Block block = statements({}, "");
    return block;
  }

 private:
  // Up to a tag of `ends`, which is left as the current token (behind its {%). `opened` names the tag that
  // awaits it.
  Block statements(Names ends, const std::string& opened) {
    const int begin_line = tokens_.line();
    if (++depth_ > kMaxStatementDepth)
      origin_.refuse(begin_line, "blocks stand in one another more than {} deep", kMaxStatementDepth);
    Block block;
    while (true) {
      const int line = tokens_.line();
      if (tokens_.at(TokenKind::End)) {
        if (!opened.empty()) origin_.refuse(begin_line, "the block '{}' has no end", opened);
        break;
      }
      if (tokens_.at(TokenKind::Text)) {
        auto text = make(StatementKind::Text, line);
        text->text = tokens_.next().text;
        block.push_back(std::move(text));
      } else if (tokens_.at(TokenKind::OutputBegin)) {
        tokens_.next();
        auto output = make(StatementKind::Output, line);
        output->expressions.push_back(expressions_.tuple());
        tokens_.expect(TokenKind::OutputEnd, "}}");
        block.push_back(std::move(output));
      } else {
        tokens_.expect(TokenKind::BlockBegin, "{%");
        if (std::any_of(ends.begin(), ends.end(), [&](auto end) { return tokens_.at_name(end); })) break;
        block.push_back(statement());
        tokens_.expect(TokenKind::BlockEnd, "%}");
      }
    }
    --depth_;
    return block;
  }

  // The body of a tag whose opening `%}` comes next; the closing tag's name is consumed.
  Block body(Names ends, const std::string& opened) {
    tokens_.expect(TokenKind::BlockEnd, "%}");
    return statements(ends, opened);
  }
  Block whole_body(std::string_view end, const std::string& opened) {
    Block block = body({end}, opened);
    tokens_.expect_name(end);
    return block;
  }

  StatementPtr make(StatementKind kind, int line) {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = line;
    return statement;
  }

  StatementPtr statement() {
    const int line = tokens_.line();
    const std::string tag = tokens_.expect_identifier("the name of a tag");
    if (tag == "if") return parse_if(line);
    if (tag == "for") return parse_for(line);
    if (tag == "set") return parse_set(line);
    if (tag == "macro") return parse_macro(line);
    if (tag == "call") return parse_call(line);
    if (tag == "filter") return parse_filter(line);
    if (tag == "with") return parse_with(line);
    if (tag == "print") return parse_print(line);
    if (tag == "break") return make(StatementKind::Break, line);
    if (tag == "continue") return make(StatementKind::Continue, line);
    if (tag == "generation") {
      auto generation = make(StatementKind::Generation, line);
      generation->body = whole_body("endgeneration", tag);
      return generation;
    }
    for (const char* other :
         {"block", "extends", "include", "import", "from", "autoescape", "do", "trans", "debug"})
      if (tag == other) origin_.refuse(line, "the tag '{}' is not supported in chat templates", tag);
    origin_.refuse(line, "unknown tag '{}'", tag);
  }

  StatementPtr parse_if(int line) {
    auto node = make(StatementKind::If, line);
    while (true) {
      ExpressionPtr condition = expressions_.simple_tuple();
      Block block = body({"elif", "else", "endif"}, "if");
      node->branches.emplace_back(std::move(condition), std::move(block));
      if (tokens_.skip_name("elif")) continue;
      if (tokens_.skip_name("else")) {
        node->else_body = whole_body("endif", "if");
      } else {
        tokens_.expect_name("endif");
      }
      return node;
    }
  }

  StatementPtr parse_for(int line) {
    auto node = make(StatementKind::For, line);
    node->target = expressions_.target("in");
    if (names_loop(node->target))
      origin_.refuse(line, "Can't assign to special loop variable in for-loop target");
    if (names_namespace(node->target)) origin_.refuse(line, "a loop cannot assign to an attribute");
    tokens_.expect_name("in");
    node->expressions.push_back(expressions_.simple_tuple("recursive"));
    node->expressions.push_back(tokens_.skip_name("if") ? expressions_.expression() : nullptr);
    node->recursive = tokens_.skip_name("recursive");
    node->body = body({"endfor", "else"}, "for");
    if (tokens_.skip_name("else")) {
      node->else_body = whole_body("endfor", "for");
    } else {
      tokens_.expect_name("endfor");
    }
    return node;
  }

  static bool names_namespace(const Target& target) {
    return !target.attribute.empty() ||
           std::any_of(target.items.begin(), target.items.end(), names_namespace);
  }

  static bool names_loop(const Target& target) {
    return target.name == "loop" || std::any_of(target.items.begin(), target.items.end(), names_loop);
  }

  StatementPtr parse_set(int line) {
    auto node = make(StatementKind::Set, line);
    node->target = expressions_.target();
    if (tokens_.skip_symbol("=")) {
      node->expressions.push_back(expressions_.tuple());
      return node;
    }
    node->kind = StatementKind::SetBlock;
    node->expressions.push_back(tokens_.skip_symbol("|") ? expressions_.filters() : nullptr);
    node->body = whole_body("endset", "set");
    return node;
  }

  void parse_signature(MacroNode& macro) {
    tokens_.expect_symbol("(");
    while (!tokens_.at_symbol(")")) {
      if (!macro.parameters.empty()) tokens_.expect_symbol(",");
      const int line = tokens_.line();
      std::string name = tokens_.expect_identifier("the name of a parameter");
      if (std::find(macro.parameters.begin(), macro.parameters.end(), name) != macro.parameters.end())
        origin_.refuse(line, "the parameter '{}' is named twice", name);
      macro.parameters.push_back(std::move(name));
      if (tokens_.skip_symbol("=")) {
        macro.defaults.push_back(expressions_.expression());
      } else if (!macro.defaults.empty()) {
        origin_.refuse(line, "a parameter without default follows one with a default");
      }
    }
    tokens_.expect_symbol(")");
  }

  // Names that the body reads decide whether a macro takes further arguments, see note_load.
  void parse_macro_body(MacroNode& macro, std::string_view end, const std::string& opened) {
    open_macros_.push_back(&macro);
    macro.body = whole_body(end, opened);
    open_macros_.pop_back();
    const auto is_parameter = [&](const char* name) {
      return std::find(macro.parameters.begin(), macro.parameters.end(), name) != macro.parameters.end();
    };
    if (is_parameter("caller") || is_parameter("kwargs") || is_parameter("varargs"))
      origin_.refuse(tokens_.line(), "a macro's parameter cannot be named caller, kwargs or varargs");
  }

  void note_load(const std::string& name) {
    for (MacroNode* macro : open_macros_) {
      macro->uses_caller |= name == "caller";
      macro->uses_kwargs |= name == "kwargs";
      macro->uses_varargs |= name == "varargs";
    }
  }

  StatementPtr parse_macro(int line) {
    auto node = make(StatementKind::Macro, line);
    node->macro = std::make_unique<MacroNode>();
    node->macro->name = tokens_.expect_identifier("the name of a macro");
    parse_signature(*node->macro);
    parse_macro_body(*node->macro, "endmacro", "macro");
    return node;
  }

  StatementPtr parse_call(int line) {
    auto node = make(StatementKind::CallBlock, line);
    node->macro = std::make_unique<MacroNode>();
    node->macro->name = "caller";
    if (tokens_.at_symbol("(")) parse_signature(*node->macro);
    node->expressions.push_back(expressions_.expression());
    if (node->expressions[0]->kind != ExpressionKind::Call)
      origin_.refuse(line, "expected a call after 'call'");
    parse_macro_body(*node->macro, "endcall", "call");
    return node;
  }

  StatementPtr parse_filter(int line) {
    auto node = make(StatementKind::FilterBlock, line);
    node->expressions.push_back(expressions_.filters());
    node->body = whole_body("endfilter", "filter");
    return node;
  }

  StatementPtr parse_with(int line) {
    auto node = make(StatementKind::With, line);
    while (!tokens_.at(TokenKind::BlockEnd)) {
      if (!node->targets.empty()) tokens_.expect_symbol(",");
      Target target;
      target.name = tokens_.expect_identifier("a name to assign to");
      node->targets.push_back(std::move(target));
      tokens_.expect_symbol("=");
      node->expressions.push_back(expressions_.expression());
    }
    node->body = whole_body("endwith", "with");
    return node;
  }

  StatementPtr parse_print(int line) {
    auto node = make(StatementKind::Output, line);
    for (bool first = true; !tokens_.at(TokenKind::BlockEnd); first = false) {
      if (!first) tokens_.expect_symbol(",");
      node->expressions.push_back(expressions_.expression());
    }
    return node;
  }

  const Origin& origin_;
  TokenStream tokens_;
  ExpressionParser expressions_;
  std::vector<MacroNode*> open_macros_;
  int depth_ = 0;
};

}  // namespace

Block parse_template(std::string_view source, const Origin& origin) {
  return Parser(source, origin).run();
}

}  // namespace hearth::chat
