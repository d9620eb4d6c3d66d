#include "PairFile.h"

#include "Backend.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace ccg {

namespace {

/// Lines of words, without comments and empty lines.
class Reader {
public:
  explicit Reader(const std::string& path) : path_(path), stream_(path) {
    if (!stream_) {
      throw std::runtime_error(path + " cannot be read");
    }
  }

  /// The words of the next line; false at the end of the file.
  bool next(std::vector<std::string>& words) {
    for (std::string line; std::getline(stream_, line);) {
      ++number_;
      std::istringstream text(line.substr(0, line.find('#')));
      words.clear();
      for (std::string word; text >> word;) {
        words.push_back(word);
      }
      if (!words.empty()) {
        return true;
      }
    }
    return false;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(path_ + " line " + std::to_string(number_) + ": " + what);
  }

  void needWords(const std::vector<std::string>& words, std::size_t count, const std::string& form) const {
    if (words.size() != count) {
      fail(std::to_string(words.size()) + " words where \"" + form + "\" is expected");
    }
  }

  double number(const std::string& word) const {
    std::size_t used = 0;
    double value = 0.0;
    try {
      value = std::stod(word, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used != word.size() || !std::isfinite(value)) {
      fail("\"" + word + "\" is not a finite number");
    }
    return value;
  }

  /// A whole number from low to high.
  std::size_t count(const std::string& word, std::size_t low, std::size_t high) const {
    const double value = number(word);
    if (value != std::floor(value) || value < double(low) || value > double(high)) {
      fail(word + " is not a whole number from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return std::size_t(value);
  }

private:
  std::string path_;
  std::ifstream stream_;
  std::size_t number_ = 0;
};

constexpr std::size_t mostBeads = 100000000, mostNodes = 10000000;

/// The cubics through values and slopes at evenly spaced nodes.
PairSpline hermite(double first, double spacing, const std::vector<double>& value, const std::vector<double>& slope) {
  PairSpline spline;
  const std::size_t intervals = value.size() - 1;
  spline.first = first;
  spline.perLength = 1.0 / spacing;
  spline.cutoff = first + spacing * double(intervals);
  spline.coefficients = {value[0], slope[0] * spacing, 0.0, 0.0};
  for (std::size_t k = 0; k < intervals; ++k) {
    const double rise = value[k + 1] - value[k], left = slope[k] * spacing, right = slope[k + 1] * spacing;
    const double cubic[4] = {value[k], left, 3.0 * rise - 2.0 * left - right, left + right - 2.0 * rise};
    spline.coefficients.insert(spline.coefficients.end(), cubic, cubic + 4);
  }
  spline.coefficients.resize(spline.coefficients.size() + 4, 0.0);
  return spline;
}

/// The nodes that follow a line "table A B FIRST SPACING NODES".
PairSpline readNodes(Reader& reader, const std::vector<std::string>& header) {
  const double first = reader.number(header[3]), spacing = reader.number(header[4]);
  const std::size_t nodes = reader.count(header[5], 2, mostNodes);
  if (first < 0.0 || spacing <= 0.0) {
    reader.fail("a table starts at 0 or above, with a positive spacing");
  }
  std::vector<double> value, slope;
  std::vector<std::string> words;
  for (std::size_t k = 0; k < nodes; ++k) {
    if (!reader.next(words)) {
      reader.fail("the file ends after " + std::to_string(k) + " of " + std::to_string(nodes) + " nodes");
    }
    reader.needWords(words, 3, "R V SLOPE");
    if (std::abs(reader.number(words[0]) - first - spacing * double(k)) > 1e-6 * spacing) {
      reader.fail("node " + std::to_string(k + 1) + " is at r = " + words[0] + ", the table's line puts it at " +
                  show(first + spacing * double(k), 12));
    }
    value.push_back(reader.number(words[1]));
    slope.push_back(reader.number(words[2]));
  }
  // A step at the cut-off is an impulse that no force knows of: energy would not be conserved.
  if (std::abs(value.back()) > 1e-6) {
    reader.fail("V = " + words[1] + " at the last node, the cut-off; shift the table so that it ends at 0");
  }
  return hermite(first, spacing, value, slope);
}

int typeOf(const Reader& reader, const std::string& name, const std::vector<std::string>& names) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    reader.fail("unknown type " + name);
  }
  return int(found - names.begin());
}

void readVersion(Reader& reader) {
  std::vector<std::string> words;
  if (!reader.next(words) || words[0] != "ccg_pair_tables") {
    reader.fail("no file of pair tables: its first line is \"ccg_pair_tables 1\"");
  }
  if (words.size() != 2 || words[1] != "1") {
    reader.fail("format version " + (words.size() > 1 ? words[1] : "unknown") + ", this plug-in reads version 1");
  }
}

void addPair(Reader& reader, PairTables& tables, const std::vector<std::string>& words) {
  const bool table = words[0] == "table";
  reader.needWords(words, table ? 6 : 3, table ? "table TYPE TYPE FIRST SPACING NODES" : "none TYPE TYPE");
  constexpr int unset = PairTables::none - 1;
  const std::size_t n = tables.types.size();
  const int a = typeOf(reader, words[1], tables.types), b = typeOf(reader, words[2], tables.types);
  tables.index.resize(n * n, unset);
  if (tables.index[a * n + b] != unset) {
    reader.fail("types " + words[1] + " and " + words[2] + " a second time");
  }
  tables.index[a * n + b] = tables.index[b * n + a] = table ? int(tables.splines.size()) : PairTables::none;
  if (table) {
    tables.splines.push_back(readNodes(reader, words));
  }
}

void readHeaderLine(const Reader& reader, PairTables& tables, const std::vector<std::string>& words) {
  if (words[0] == "kind") {
    reader.needWords(words, 2, "kind pair");
    if (words[1] != "pair") {
      reader.fail("tables of kind " + words[1] + ", this action takes kind pair");
    }
  } else if (words[0] == "units") {
    reader.needWords(words, 3, "units nm kJ/mol");
    tables.lengthUnit = words[1];
    tables.energyUnit = words[2];
  } else if (words[0] == "temperature") {
    reader.needWords(words, 2, "temperature KELVIN");
    tables.temperature = reader.number(words[1]);
  } else if (words[0] == "type") {
    reader.needWords(words, 3, "type NAME BEADS");
    if (!tables.index.empty()) {
      reader.fail("types are named before the first table");
    }
    if (std::count(tables.types.begin(), tables.types.end(), words[1])) {
      reader.fail("type " + words[1] + " a second time");
    }
    tables.types.push_back(words[1]);
    tables.beadsOfType.push_back(reader.count(words[2], 0, mostBeads));
  } else {
    reader.fail("unknown keyword " + words[0]);
  }
}

}

std::size_t PairTables::beads() const {
  std::size_t sum = 0;
  for (const std::size_t count : beadsOfType) {
    sum += count;
  }
  return sum;
}

double PairTables::cutoff() const {
  double largest = 0.0;
  for (const PairSpline& spline : splines) {
    largest = std::max(largest, spline.cutoff);
  }
  return largest;
}

PairTables readPairTables(const std::string& path) {
  Reader reader(path);
  readVersion(reader);
  PairTables tables;
  for (std::vector<std::string> words; reader.next(words);) {
    if (words[0] == "table" || words[0] == "none") {
      addPair(reader, tables, words);
    } else {
      readHeaderLine(reader, tables, words);
    }
  }
  if (tables.splines.empty() || tables.lengthUnit.empty()) {
    throw std::runtime_error(path + " has no " + (tables.splines.empty() ? "table" : "units"));
  }
  const std::size_t n = tables.types.size();
  for (std::size_t k = 0; k < n * n; ++k) {
    if (tables.index[k] < PairTables::none) {
      throw std::runtime_error(path + " has neither a table nor \"none\" for types " + tables.types[k / n] + " and " +
                               tables.types[k % n]);
    }
  }
  return tables;
}

std::vector<int> readBeadTypes(const std::string& path, std::size_t beads, const std::vector<std::string>& names) {
  Reader reader(path);
  std::vector<int> types(beads, -1);
  for (std::vector<std::string> words; reader.next(words);) {
    reader.needWords(words, 3, "FIRST LAST TYPE");
    const std::size_t first = reader.count(words[0], 1, beads), last = reader.count(words[1], first, beads);
    const int type = typeOf(reader, words[2], names);
    for (std::size_t bead = first; bead <= last; ++bead) {
      if (types[bead - 1] >= 0) {
        reader.fail("bead " + std::to_string(bead) + " a second time");
      }
      types[bead - 1] = type;
    }
  }
  const auto missing = std::find(types.begin(), types.end(), -1);
  if (missing != types.end()) {
    throw std::runtime_error(path + " gives no type to bead " + std::to_string(missing - types.begin() + 1) + " of " +
                             std::to_string(beads));
  }
  return types;
}

std::vector<std::pair<unsigned, unsigned>> readExclusions(const std::string& path, std::size_t beads) {
  Reader reader(path);
  std::vector<std::pair<unsigned, unsigned>> pairs;
  for (std::vector<std::string> words; reader.next(words);) {
    reader.needWords(words, 2, "BEAD BEAD");
    const std::size_t first = reader.count(words[0], 1, beads), second = reader.count(words[1], 1, beads);
    if (first == second) {
      reader.fail("bead " + words[0] + " and itself");
    }
    pairs.emplace_back(unsigned(std::min(first, second) - 1), unsigned(std::max(first, second) - 1));
  }
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  return pairs;
}

}
