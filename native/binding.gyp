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
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": [
        "NAPI_VERSION=8",
        "NODE_ADDON_API_CPP_EXCEPTIONS",
        "NODE_ADDON_API_CPP_EXCEPTIONS_ALL",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
        "_GNU_SOURCE",
        "_FILE_OFFSET_BITS=64"
      ],
      "cflags_cc!": ["-fno-exceptions"],
      "cflags_cc": ["-std=c++17", "-Wall", "-Wextra", "-O2", "-fvisibility=hidden"]
    }
  ]
}
