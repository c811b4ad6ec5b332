{
  "targets": [
    {
      "target_name": "devstate",
      "sources": [
        "src/addon.cc",
        "src/async.cc",
        "src/counted.cc",
        "src/crc32c.cc",
        "src/event.cc",
        "src/file.cc",
        "src/memory.cc",
        "src/path.cc",
        "src/output.cc",
        "src/poll.cc",
        "src/reaper.cc",
        "src/sigbus.cc",
        "src/socket.cc",
        "src/support.cc",
        "src/vfio.cc"
      ],
      "defines": ["NAPI_VERSION=8", "_GNU_SOURCE", "_FILE_OFFSET_BITS=64"],
      "cflags_cc": ["-std=c++17", "-Wall", "-Wextra", "-O2", "-fvisibility=hidden"]
    }
  ]
}
