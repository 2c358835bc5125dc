// A parsed template: statements and expressions, each with the line it began on. Made by parser.h, checked by
// check.h, executed by interpreter.h. Immutable after parsing.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/chat/value.h"

namespace hearth::chat {

// Deeper trees are refused, which bounds every recursion over them.
inline constexpr int kMaxTreeDepth = 400;

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class ExpressionKind {
  Constant,   // constant
  Name,       // name
  Tuple,      // children
  List,       // children
  Dict,       // children: key, value, key, value ...
  Attribute,  // children[0].name
  Item,       // children[0][children[1]]
  Slice,      // children[0][a:b:c]; children 1 to 3, null where left out
  Call,       // children[0](call)
  Filter,     // children[0] | name(call); children[0] is null in {% filter %} and {% set x | f %}
  Test,       // children[0] is name(call)
  Not,        // children[0]; so are Negative and Positive
  Negative,
  Positive,
  Add,  // children[0] + children[1]; so are the following
  Subtract,
  Multiply,
  Divide,
  FloorDivide,
  Modulo,
  Power,
  And,
  Or,
  Concat,       // children[0] ~ children[1] ~ ...
  Compare,      // children[0] comparisons[0] children[1] comparisons[1] ...
  Conditional,  // children[1] if children[0] else children[2]; the last may be null
};

enum class Comparison { Equal, NotEqual, Less, LessEqual, Greater, GreaterEqual, In, NotIn };

struct CallNode {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr star, double_star;  // *list, **dict; null where left out
};

struct Expression {
  ExpressionKind kind;
  int line;
  int depth = 1;
  std::string name;
  Value constant;
  std::vector<ExpressionPtr> children;
  std::vector<Comparison> comparisons;
  CallNode call;
};

// What `set` and `for` assign to: a name, an attribute of a namespace, or several targets.
struct Target {
  std::string name;
  std::string attribute;      // of the namespace `name`; empty for a plain name
  std::vector<Target> items;  // not empty: the value is unpacked
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

// A macro, or the body of {% call %}, which is a macro named `caller`.
struct MacroNode {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExpressionPtr> defaults;  // of the last parameters
  bool uses_caller = false, uses_kwargs = false, uses_varargs = false;
  Block body;
  std::vector<std::string> declared;  // see scopes.h
};

enum class StatementKind {
  Text,         // text
  Output,       // expressions, one after the other
  If,           // branches, else_body
  For,          // target in expressions[0], if expressions[1] (may be null): body; else_body
  Set,          // target = expressions[0]
  SetBlock,     // target = what body writes, through expressions[0] (may be null)
  Macro,        // macro
  CallBlock,    // expressions[0] is the call that gets `caller`, which is macro
  FilterBlock,  // expressions[0] of what body writes
  With,         // targets[i] = expressions[i] inside body
  Generation,   // body; what it writes is marked
  Break,
  Continue,
};

struct Statement {
  StatementKind kind;
  int line;
  std::string text;
  std::vector<ExpressionPtr> expressions;
  Target target;
  std::vector<Target> targets;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  Block body, else_body;
  bool recursive = false;
  std::unique_ptr<MacroNode> macro;
  std::vector<std::string> declared, else_declared;  // of body and else_body, see scopes.h
};

}  // namespace hearth::chat
