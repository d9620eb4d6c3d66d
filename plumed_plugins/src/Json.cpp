#include "Json.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace ccg {

/// Recursive descent over the text; depth is bounded so that a damaged file cannot exhaust the stack.
class JsonReader {
public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  Json document() {
    Json value = read(0);
    skip();
    if (at_ != text_.size()) {
      fail("something follows the end");
    }
    return value;
  }

private:
  static constexpr unsigned kDeepest = 64;

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("not valid JSON, " + what + " at character " + std::to_string(at_));
  }

  void skip() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_])) {
      ++at_;
    }
  }

  bool take(char wanted) {
    skip();
    if (at_ < text_.size() && text_[at_] == wanted) {
      ++at_;
      return true;
    }
    return false;
  }

  bool takeWord(const char* word) {
    const std::size_t length = std::strlen(word);
    if (text_.compare(at_, length, word) != 0) {
      return false;
    }
    at_ += length;
    return true;
  }

  Json read(unsigned depth) {
    if (depth > kDeepest) {
      fail("nested too deeply");
    }
    skip();
    if (at_ >= text_.size()) {
      fail("unexpected end");
    }
    Json value;
    const char first = text_[at_];
    if (first == '{') {
      readObject(value, depth);
    } else if (first == '[') {
      readArray(value, depth);
    } else if (first == '"') {
      value.type_ = Json::Type::string;
      value.string_ = readString();
    } else if (takeWord("true") || takeWord("false")) {
      value.type_ = Json::Type::boolean;
      value.boolean_ = first == 't';
    } else if (!takeWord("null")) {
      value.type_ = Json::Type::number;
      value.number_ = readNumber();
    }
    return value;
  }

  void readObject(Json& value, unsigned depth) {
    value.type_ = Json::Type::object;
    ++at_;
    if (take('}')) {
      return;
    }
    do {
      skip();
      std::string key = readString();
      if (!take(':')) {
        fail("no colon after \"" + key + "\"");
      }
      value.object_[key] = read(depth + 1);
    } while (take(','));
    if (!take('}')) {
      fail("no closing brace");
    }
  }

  void readArray(Json& value, unsigned depth) {
    value.type_ = Json::Type::array;
    ++at_;
    if (take(']')) {
      return;
    }
    do {
      value.array_.push_back(read(depth + 1));
    } while (take(','));
    if (!take(']')) {
      fail("no closing bracket");
    }
  }

  std::string readString() {
    if (at_ >= text_.size() || text_[at_] != '"') {
      fail("no string");
    }
    std::string out;
    for (++at_; at_ < text_.size(); ++at_) {
      if (text_[at_] == '"') {
        ++at_;
        return out;
      }
      out += text_[at_] == '\\' ? readEscape() : std::string(1, text_[at_]);
    }
    fail("unexpected end of a string");
  }

  std::string readEscape() {
    static const std::map<char, char> simple = {
      {'"', '"'}, {'\\', '\\'}, {'/', '/'}, {'b', '\b'}, {'f', '\f'}, {'n', '\n'}, {'r', '\r'}, {'t', '\t'}
    };
    if (++at_ >= text_.size()) {
      fail("unexpected end of a string");
    }
    const auto found = simple.find(text_[at_]);
    if (found != simple.end()) {
      return std::string(1, found->second);
    }
    // The writer leaves UTF-8 as it is, so that \u stands for control characters only.
    if (text_[at_] != 'u' || at_ + 4 >= text_.size()) {
      fail("unknown escape");
    }
    const long code = std::strtol(text_.substr(at_ + 1, 4).c_str(), nullptr, 16);
    at_ += 4;
    return std::string(1, code < 128 ? static_cast<char>(code) : '?');
  }

  double readNumber() {
    const std::size_t end = text_.find_first_not_of("+-0123456789.eE", at_);
    const std::string word = text_.substr(at_, end == std::string::npos ? end : end - at_);
    // A stream in the classic locale, because strtod would read "0.5" as 0 in a process that set a German one.
    std::istringstream stream(word);
    stream.imbue(std::locale::classic());
    double number = 0.0;
    // NaN and Infinity are no JSON: a model with such weights never gets past this line.
    if (word.empty() || !(stream >> number) || !stream.eof() || !std::isfinite(number)) {
      fail("no number");
    }
    at_ += word.size();
    return number;
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

Json Json::parse(const std::string& text) {
  return JsonReader(text).document();
}

void Json::require(Type type, const char* name) const {
  if (type_ != type) {
    throw std::runtime_error(std::string("expected ") + name);
  }
}

const Json* Json::find(const std::string& key) const {
  require(Type::object, "an object");
  const auto found = object_.find(key);
  return found == object_.end() || found->second.isNull() ? nullptr : &found->second;
}

const Json& Json::at(const std::string& key) const {
  const Json* found = find(key);
  if (!found) {
    throw std::runtime_error("\"" + key + "\" is missing");
  }
  return *found;
}

bool Json::boolean() const {
  require(Type::boolean, "true or false");
  return boolean_;
}

double Json::number() const {
  require(Type::number, "a number");
  return number_;
}

unsigned Json::count() const {
  const double value = number();
  if (value < 0 || value > 1e9 || value != std::floor(value)) {
    throw std::runtime_error("expected a count");
  }
  return static_cast<unsigned>(value);
}

const std::string& Json::string() const {
  require(Type::string, "a string");
  return string_;
}

const std::vector<Json>& Json::array() const {
  require(Type::array, "a list");
  return array_;
}

std::vector<double> Json::numbers() const {
  std::vector<double> out;
  out.reserve(array().size());
  for (const Json& item : array_) {
    out.push_back(item.number());
  }
  return out;
}

}
