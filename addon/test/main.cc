#include "check.h"

// Usage: <binary> [part of a case name]
int main(int count, char** arguments) { return cairn::test::runAll(count > 1 ? arguments[1] : nullptr); }
