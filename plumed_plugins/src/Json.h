// A reader for the JSON that model files carry: no dependency, a few hundred kilobytes at most, read once.
#ifndef CCG_JSON_H
#define CCG_JSON_H

#include <map>
#include <string>
#include <vector>

namespace ccg {

/// One JSON value. Accessors throw std::runtime_error with the key's name when something is missing or of another type.
class Json {
public:
  enum class Type { null, boolean, number, string, array, object };

  static Json parse(const std::string& text);

  Type type() const {
    return type_;
  }
  bool isNull() const {
    return type_ == Type::null;
  }
  /// Member of an object, nullptr where it is absent or null.
  const Json* find(const std::string& key) const;
  /// Member of an object that must be there.
  const Json& at(const std::string& key) const;

  bool boolean() const;
  double number() const;
  unsigned count() const;
  const std::string& string() const;
  const std::vector<Json>& array() const;
  std::vector<double> numbers() const;

private:
  friend class JsonReader;
  void require(Type type, const char* name) const;

  Type type_ = Type::null;
  bool boolean_ = false;
  double number_ = 0.0;
  std::string string_;
  std::vector<Json> array_;
  std::map<std::string, Json> object_;
};

}

#endif
