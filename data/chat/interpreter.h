// Executes a parsed template once. Not thread-safe; a render makes one of its own.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/chat/filters.h"
#include "data/chat/functions.h"
#include "data/chat/syntax_tree.h"

namespace hearth::chat {

class Interpreter {
 public:
  // `variables` are what templates see under their names. Both must outlive the interpreter.
  explicit Interpreter(const Dict& variables) : variables_(variables) {}
  // Throws Fault; line() then says where.
  void run(const Block& block, const std::vector<std::string>& declared);
  int line() const { return line_; }
  std::string take_text() { return std::move(text_); }
  std::vector<std::pair<size_t, size_t>> take_generated() { return std::move(generated_); }

 private:
  using ScopePtr = std::shared_ptr<Scope>;
  enum class Flow { Normal, Break, Continue };
  class Deeper;
  class Inside;
  class Capture;

  static ScopePtr make_scope(ScopePtr parent, const std::vector<std::string>& declared);

  // interpreter.cpp: statements
  Flow run_block(const Block& block);
  Flow run_statement(const Statement& statement);
  Flow run_if(const Statement& statement);
  Flow run_generation(const Statement& statement);
  Flow run_set_block(const Statement& statement);
  Flow run_filter_block(const Statement& statement);
  Flow run_with(const Statement& statement);
  void run_output(const Statement& statement);
  void run_call_block(const Statement& statement);
  void define_macro(const Statement& statement);
  Flow run_for(const Statement& statement);
  Flow run_loop(const Statement& statement, const Value& iterable, int64_t level);
  std::vector<Value> filtered(const Statement& statement, std::vector<Value> items);
  void assign(const Target& target, const Value& value);
  void write(std::string_view text);
  void write_value(const Value& value);
  Value make_macro(const MacroNode& node);
  Value call_macro(const Macro& macro, const Arguments& arguments);
  ScopePtr bind(const Macro& macro, const Arguments& arguments);
  Value call_loop(const Loop& loop, const Arguments& arguments);

  // evaluate.cpp: expressions
  Value evaluate(const Expression& node);
  Value evaluate_name(const std::string& name);
  Value evaluate_binary(const Expression& node);
  Value evaluate_compare(const Expression& node);
  Value evaluate_concat(const Expression& node);
  Value evaluate_slice(const Expression& node);
  Value evaluate_sequence(const Expression& node);
  Value evaluate_dict(const Expression& node);
  Value evaluate_conditional(const Expression& node);
  Value evaluate_call(const Expression& node);
  Value evaluate_filter(const Expression& node);
  Value evaluate_test(const Expression& node);
  bool compare(Comparison comparison, const Value& a, const Value& b);
  Arguments evaluate_arguments(const CallNode& call);
  Value call(const Value& callee, const Arguments& arguments);

  const Dict& variables_;
  Budget budget_;
  Circles circles_;
  std::string text_;
  std::string* out_ = &text_;  // where writing goes: the text, or what captures it
  std::vector<std::pair<size_t, size_t>> generated_;
  ScopePtr scope_;
  Value filter_input_;  // what {% filter %} and {% set x | f %} captured
  int line_ = 1;
  int depth_ = 0;
};

// Counts how deep the interpreter is in itself. Python gives up at about 250 macros in one another, which
// take five or six levels each here; a level takes under 1 KB of stack in a release build.
class Interpreter::Deeper {
 public:
  explicit Deeper(Interpreter& interpreter) : depth_(interpreter.depth_) {
    if (++depth_ > kMaxDepth) {
      --depth_;
      fault("maximum recursion depth exceeded: macros call one another more than {} levels deep", kMaxDepth);
    }
  }
  ~Deeper() { --depth_; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;

 private:
  static constexpr int kMaxDepth = 1500;
  int& depth_;
};

}  // namespace hearth::chat
