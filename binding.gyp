{
  "targets": [
    {
      "target_name": "cairn",
      "sources": [
        "addon/arena.cc",
        "addon/bench.cc",
        "addon/client.cc",
        "addon/common.cc",
        "addon/copy.cc",
        "addon/disk.cc",
        "addon/disk_batch.cc",
        "addon/disk_file.cc",
        "addon/disk_finish.cc",
        "addon/disk_pool.cc",
        "addon/disk_queue.cc",
        "addon/disk_slot.cc",
        "addon/disk_uring.cc",
        "addon/events.cc",
        "addon/hash.cc",
        "addon/header.cc",
        "addon/js.cc",
        "addon/js_arena.cc",
        "addon/js_client.cc",
        "addon/js_copy.cc",
        "addon/js_disk.cc",
        "addon/js_doorbell.cc",
        "addon/populate.cc",
        "addon/region.cc",
        "addon/ring.cc",
        "addon/scan.cc",
        "addon/seal.cc",
        "addon/slot.cc",
        "addon/socket.cc",
        "addon/table.cc",
        "addon/toucher.cc",
        "addon/transport.cc",
        "addon/transport_turn.cc"
      ],
      "include_dirs": [
        "<!(node -p \"require('path').join(require('path').dirname(require.resolve('xxhash-addon/package.json')), 'xxHash')\")"
      ],
      "defines": ["NAPI_VERSION=9", "XXH_INLINE_ALL"],
      "cflags!": ["-O2"],
      "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-O2"],
      "cflags_cc": [
        "-std=c++20",
        "-O3",
        "-fexceptions",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-function"
      ],
      "libraries": ["-lpthread"],
      "ldflags": ["-Wl,-z,nodelete"]
    },
    {
      "target_name": "index_reader",
      "type": "executable",
      "product_name": "cairn-index-reader",
      "product_extension": "",
      "variables": {
        "lmdb": "<!(node -p \"require('path').relative('.', require('path').join(require.resolve('lmdb'), '../../dependencies/lmdb/libraries/liblmdb'))\")"
      },
      "sources": [
        "addon/common.cc",
        "addon/index_reader/answer.cc",
        "addon/index_reader/crc32.cc",
        "addon/index_reader/main.cc",
        "addon/index_reader/page.cc",
        "addon/index_reader/reader.cc",
        "addon/index_reader/records.cc",
        "<(lmdb)/mdb.c",
        "<(lmdb)/midl.c"
      ],
      "include_dirs": ["<(lmdb)"],
      "defines": ["MDB_MAXKEYSIZE=0", "MDB_USE_ROBUST"],
      "cflags_c": ["-w", "-O3"],
      "cflags!": ["-O2"],
      "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-O2"],
      "cflags_cc": ["-std=c++20", "-O3", "-fexceptions", "-Wall", "-Wextra", "-Werror"],
      "libraries": ["-lpthread"]
    }
  ]
}
