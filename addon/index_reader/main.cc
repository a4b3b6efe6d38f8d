// A program of its own that reads the index of one directory, since LMDB maps its file and a bad one ends the process
// that reads it (reader.h). It only reads, so it may run before the directory is locked, and beside a daemon at work.
//
//   cairn-index-reader <directory> 3> <file>
//
// Exit code 0: the index was read (or there is none), and the file holds the answer (answer.h). One byte on standard
// output, as soon as the head is in the file: the verdict stands, and the records follow while they are read already.
// Nothing touches the map any more then.
// Exit code 3: the index is damaged, standard error says why in one line.
#include <unistd.h>

#include <cstdio>
#include <exception>

#include "../common.h"
#include "answer.h"

namespace {

constexpr int kOutput = 3;
constexpr int kWrongUse = 2;
constexpr int kDamaged = 3;

void answer(const std::string& directory) {
  const std::string folder = directory + "/index";
  if (!cairn::indexExists(folder)) {
    cairn::writeHead(kOutput, nullptr);
    return;
  }
  const cairn::IndexContent content = cairn::readIndex(folder);
  cairn::RecordOrder order(content.records.size());
  cairn::writeHead(kOutput, &content);
  // Who started this may look at the end of the process alone.
  if (write(STDOUT_FILENO, "h", 1) < 0) errno = 0;
  cairn::writeRecords(kOutput, content.records, order.sort(content.records));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    fputs("usage: cairn-index-reader <directory> 3> <file>\n", stderr);
    return kWrongUse;
  }
  try {
    answer(arguments[1]);
  } catch (const cairn::Failure& failure) {
    fprintf(stderr, "%s\n", failure.message.c_str());
    _exit(kDamaged);
  } catch (const std::exception& error) {
    fprintf(stderr, "%s\n", error.what());
    _exit(kDamaged);
  }
  // The system takes memory back faster than destructors do.
  _exit(0);
}
