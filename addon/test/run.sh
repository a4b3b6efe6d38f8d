#!/usr/bin/env bash
# Builds and runs the addon's own C++ tests: plain, with address and undefined-behaviour sanitizers, and the
# threaded parts with the thread sanitizer. Usage: addon/test/run.sh [plain|asan|tsan]…  (all by default)
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/addon-test
mkdir -p "$out"
xxhash=$(node -p "require('path').join(require('path').dirname(require.resolve('xxhash-addon/package.json')), 'xxHash')")
lmdb=$(node -p "require('path').join(require.resolve('lmdb'), '../../dependencies/lmdb/libraries/liblmdb')")
common=(-std=c++20 -g -DXXH_INLINE_ALL "-I$xxhash" "-I$lmdb" -Wall -Wextra -Werror -Wno-unused-function -pthread)
core=()
for file in addon/*.cc addon/index_reader/*.cc; do
  case "$file" in addon/js*.cc | */main.cc) ;; *) core+=("$file") ;; esac
done

# LMDB is not ours to check: compiled once, as binding.gyp does.
mkdir -p "$out/lmdb"
for file in mdb midl; do
  gcc -w -g -O2 -pthread -DMDB_MAXKEYSIZE=0 -DMDB_USE_ROBUST -c "$lmdb/$file.c" -o "$out/lmdb/$file.o"
done

# build NAME FLAGS… : objects in parallel (two at a time), then one binary from core and the given tests.
build() {
  local name=$1 tests=$2
  shift 2
  local dir="$out/$name"
  mkdir -p "$dir"
  # shellcheck disable=SC2086
  printf '%s\n' "${core[@]}" $tests |
    xargs -P 2 -I{} sh -c 'out="$0/$(echo "{}" | tr / _).o"; shift 0; g++ "$@" -c "{}" -o "$out"' "$dir" "${common[@]}" "$@"
  g++ "${common[@]}" "$@" "$dir"/*.o "$out"/lmdb/*.o -o "$dir/tests"
  echo "== $name"
  "$dir/tests"
}

all="addon/test/main.cc addon/test/common_test.cc addon/test/hash_test.cc addon/test/arena_test.cc addon/test/copy_test.cc addon/test/disk_slot_test.cc addon/test/disk_file_test.cc addon/test/disk_test.cc addon/test/disk_fault_test.cc addon/test/ring_test.cc addon/test/transport_test.cc addon/test/transport_refusal_test.cc addon/test/index_page_test.cc addon/test/index_reader_test.cc"
threaded="addon/test/main.cc addon/test/common_test.cc addon/test/copy_test.cc addon/test/disk_file_test.cc addon/test/disk_test.cc addon/test/disk_fault_test.cc addon/test/ring_test.cc addon/test/transport_test.cc addon/test/transport_refusal_test.cc"
for kind in "${@:-plain asan tsan}"; do
  for one in $kind; do
    rm -rf "${out:?}/$one"
    case "$one" in
      plain) build plain "$all" -O2 ;;
      asan)
        export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1
        export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
        build asan "$all" -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
        ;;
      tsan)
        # The sanitizer does not model stand-alone fences and says so; ours order stores to slots only.
        TSAN_OPTIONS=halt_on_error=1 build tsan "$threaded" -O1 -fsanitize=thread -Wno-tsan
        ;;
      *) echo "unknown kind: $one" >&2; exit 2 ;;
    esac
  done
done
