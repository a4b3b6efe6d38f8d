// The few lines of test harness the addon's own C++ tests need: named cases, checks that print and count.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "../common.h"

namespace cairn::test {

struct Case {
  const char* name;
  std::function<void()> body;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> list;
  return list;
}
inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, std::function<void()> body) { cases().push_back({name, std::move(body)}); }
};

/// The code of the Failure that `body` throws, "" when it throws none.
inline std::string codeOf(const std::function<void()>& body) {
  try {
    body();
  } catch (const Failure& failure) {
    return failure.code;
  }
  return "";
}

inline int runAll(const char* only) {
  int ran = 0;
  for (const Case& one : cases()) {
    if (only != nullptr && std::string(one.name).find(only) == std::string::npos) continue;
    const int before = failures();
    try {
      one.body();
    } catch (const Failure& failure) {
      printf("  unexpected failure %s: %s\n", failure.code.c_str(), failure.message.c_str());
      failures()++;
    }
    printf("%s %s\n", failures() == before ? "ok  " : "FAIL", one.name);
    fflush(stdout);
    ran++;
  }
  printf("%d cases, %d failed checks\n", ran, failures());
  return failures() == 0 && ran > 0 ? 0 : 1;
}

}  // namespace cairn::test

#define CAIRN_JOIN2(a, b) a##b
#define CAIRN_JOIN(a, b) CAIRN_JOIN2(a, b)
#define TEST(name) \
  static void CAIRN_JOIN(testBody, __LINE__)(); \
  static const ::cairn::test::Register CAIRN_JOIN(testEntry, __LINE__)(name, CAIRN_JOIN(testBody, __LINE__)); \
  static void CAIRN_JOIN(testBody, __LINE__)()
#define EXPECT(condition) \
  do { \
    if (!(condition)) { \
      printf("  %s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ::cairn::test::failures()++; \
    } \
  } while (false)
#define REQUIRE(condition) \
  do { \
    if (!(condition)) { \
      printf("  %s:%d: %s (case ends)\n", __FILE__, __LINE__, #condition); \
      ::cairn::test::failures()++; \
      return; \
    } \
  } while (false)
