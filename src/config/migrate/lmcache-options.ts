/**
 * Options of LMCache within one engine process: keys of its file, `LMCACHE_` variables of the same names, keys of
 * `extra_config`, and the variables that are no keys. Names of earlier versions are here beside the newer ones.
 */
import { atEngine, type ForeignOption, mapped, missing, needless } from "./options.ts";

const P2P = "nodes share blocks through the remote tier, not with each other";
const DISAGGREGATED =
  "prefill and decode engines of a node share the daemon; other transport between them is the engine's";
const CONTROLLER =
  "there is no controller; edge.listen answers questions, `cairn status` shows the node";
const BLENDING = "blocks are found by their whole prefix only";
const GPU_STORAGE = "the daemon moves blocks through DRAM; name directories in nvme.directories";
const HOOKS = "nothing of others runs inside the daemon";
const STORED_WHOLE =
  "the connector stores every full block, of prompts and of what is generated, and no part of one";

export const LMCACHE_OPTIONS: readonly ForeignOption[] = [
  mapped(
    "max_local_cpu_size",
    ["dram.capacityBytes"],
    "GiB of one worker process; cairn's pool serves the node (`--workers N` multiplies)",
  ),
  mapped(
    "local_disk",
    ["nvme.enabled", "nvme.directories"],
    "one path or several, with or without `file://`; the folder `cairn` in each, LMCache's files stay",
  ),
  mapped(
    "max_local_disk_size",
    ["nvme.directories"],
    "GiB of one worker process, shared equally by the directories (`--workers N` multiplies)",
  ),
  mapped(
    "remote_url",
    ["remote.enabled", "remote.kind", "remote.s3.bucket", "remote.directory"],
    "`s3://BUCKET`, AWS's host name of a bucket, `fs://HOST:PORT/PATH` and `file:///PATH`; redis, valkey, mooncake and others have no counterpart",
  ),
  mapped(
    "remote_storage_plugins",
    ["remote.enabled", "remote.kind", "remote.directory"],
    "one `fs` with one base path; others have no counterpart",
  ),
  mapped("blocking_timeout_secs", ["remote.requestTimeoutMs"], "seconds"),
  mapped("cache_policy", ["policy.eviction"], "`LRU`; LFU, FIFO and MRU have no counterpart"),
  mapped(
    "extra_config.remote_storage_plugin.*",
    ["remote.directory"],
    "`.base_path` of the plugin",
  ),
  mapped("extra_config.fs_base_path", ["remote.directory"], ""),
  mapped("extra_config.s3_region", ["remote.s3.region"], "with `remote_url: s3://…`"),
  mapped("extra_config.s3_file_prefix", ["remote.s3.prefix"], "with `/cairn` after it"),
  atEngine("lookup_timeout_ms", "lookupTimeoutMs", "milliseconds; a later answer is a miss"),
  atEngine("min_retrieve_tokens", "loadBlocksMin", "in blocks, not tokens"),
  atEngine("mp_host", "socket", "engines reach the daemon by a Unix socket"),
  atEngine("mp_port", "socket", "engines reach the daemon by a Unix socket"),
  ...missing("the DRAM tier is always there; dram.capacityBytes is its size", ["local_cpu"]),
  ...missing("dram.capacityBytes is the whole pool; auto leaves three quarters of free memory", [
    "reserve_local_cpu_size",
  ]),
  ...missing("blocks are stored as they are, so that what is loaded equals what was stored", [
    "remote_serde",
  ]),
  ...missing("requests have no priority in the daemon", ["priority_limit"]),
  ...missing(STORED_WHOLE, ["save_decode_cache", "save_unfull_chunk"]),
  ...missing("each tier is asked in turn and filled by its own rule", [
    "retrieve_locations",
    "store_location",
    "hit_miss_ratio",
  ]),
  ...missing(BLENDING, [
    "enable_blending",
    "blend_recompute_ratios",
    "blend_thresholds",
    "blend_check_layers",
    "blend_min_tokens",
    "blend_special_str",
  ]),
  ...missing(P2P, [
    "enable_p2p",
    "p2p_host",
    "p2p_init_ports",
    "p2p_lookup_ports",
    "peer_init_ports",
    "peer_lookup_ports",
    "extra_config.p2p_*",
  ]),
  ...missing(DISAGGREGATED, [
    "enable_pd",
    "pd_role",
    "pd_buffer_size",
    "pd_buffer_device",
    "pd_peer_host",
    "pd_peer_init_port",
    "pd_peer_alloc_port",
    "pd_peer_query_port",
    "pd_proxy_host",
    "pd_proxy_port",
    "pd_allocation_timeout_sec",
    "pd_shutdown_timeout_sec",
    "pd_condition_poll_interval_sec",
    "pd_max_prefill_len",
    "pd_backend_mode",
    "pd_skip_proxy_notification",
    "pd_bidirectional",
    "transfer_channel",
    "enable_xpyd",
  ]),
  ...missing(
    "the daemon uses no NIXL; name directories in nvme.directories, a bucket in remote.s3",
    [
      "nixl_backends",
      "nixl_buffer_size",
      "nixl_buffer_device",
      "nixl_role",
      "nixl_peer_host",
      "nixl_peer_port",
      "nixl_peer_init_port",
      "nixl_peer_alloc_port",
      "nixl_proxy_host",
      "nixl_proxy_port",
      "nixl_receiver_port",
      "extra_config.enable_nixl_storage",
      "extra_config.nixl_*",
    ],
  ),
  ...missing(GPU_STORAGE, [
    "gds_path",
    "gds_path_sharding",
    "gds_buffer_size",
    "cufile_buffer_size",
    "use_gds",
    "gds_backend",
    "weka_path",
    "maru_path",
    "maru_pool_size",
  ]),
  ...missing(CONTROLLER, [
    "enable_controller",
    "lmcache_instance_id",
    "controller_url",
    "controller_pull_url",
    "controller_reply_url",
    "lmcache_worker_port",
    "lmcache_worker_ports",
    "lmcache_worker_ids",
    "lmcache_worker_heartbeat_delay_time",
    "lmcache_worker_heartbeat_time",
    "remote_config_url",
    "app_id",
  ]),
  ...missing(HOOKS, [
    "runtime_plugin_locations",
    "plugin_locations",
    "storage_plugins",
    "external_backends",
    "script_allowed_imports",
    "external_lookup_client",
    "audit_actual_remote_url",
    "extra_config.audit_actual_remote_url",
  ]),
  ...missing("blocks of KV cache alone are stored", [
    "enable_hidden_state_cache",
    "max_hidden_state_cpu_size",
    "hidden_state_layers",
    "hidden_states_retrieve_mode",
    "ec",
    "ec_*",
  ]),
  ...missing("S3 Express buckets are not served", ["extra_config.s3_enable_s3express"]),
  ...needless("blocks have the engine's own size; remote.chunkBytesMax bounds an object", [
    "chunk_size",
  ]),
  ...needless("keys are the engine's own block hashes", ["pre_caching_hash_algorithm"]),
  ...needless("loads and stores run beside the engine's steps", [
    "use_layerwise",
    "enable_async_loading",
    "use_gpu_connector_v3",
    "py_enable_gc",
  ]),
  ...needless("dram.hugePages asks for them where the file system has them", [
    "local_cpu_use_hugepages",
  ]),
  ...needless("dram.numa spreads the pool over all nodes with memory", [
    "numa_mode",
    "extra_config.gpu_to_numa_mapping",
  ]),
  ...needless("every directory is a device of its own, and blocks are spread over them", [
    "local_disk_path_sharding",
  ]),
  ...needless("nvme.direct uses O_DIRECT where it works", [
    "extra_config.use_odirect",
    "extra_config.fs_connector_use_odirect",
  ]),
  ...needless("the daemon serves before its pool is touched", [
    "enable_lazy_memory_allocator",
    "lazy_memory_initial_ratio",
    "lazy_memory_expand_trigger_ratio",
    "lazy_memory_step_ratio",
    "lazy_memory_safe_size",
  ]),
  ...needless("a lease ends with its engine; engineApi.heartbeatMs says how soon", [
    "pin_timeout_sec",
    "pin_check_interval_sec",
  ]),
  ...needless("one daemon answers look-ups of all ranks", [
    "lookup_server_worker_ids",
    "enable_scheduler_bypass_lookup",
  ]),
  ...needless("the daemon publishes events of all tiers itself", ["enable_kv_events"]),
  ...needless("edge.listen serves queries and /metrics", [
    "internal_api_server_enabled",
    "internal_api_server_host",
    "internal_api_server_port_start",
    "internal_api_server_include_index_list",
    "internal_api_server_socket_path_prefix",
    "enable_chunk_statistics",
    "chunk_statistics_auto_start_statistics",
    "chunk_statistics_auto_exit_timeout_hours",
    "chunk_statistics_auto_exit_target_unique_chunks",
    "chunk_statistics_strategy",
    "extra_config.histogram_bucket_*",
  ]),
  ...needless("remote.concurrencyMax and remote.inFlightBytesMax bound requests", [
    "extra_config.s3_max_io_concurrency",
    "extra_config.s3_max_inflight_reqs",
    "extra_config.s3_num_io_threads",
    "extra_config.s3_part_size",
    "extra_config.s3_prefer_http2",
  ]),
  ...needless("a block carries its own header, and a write is complete or absent", [
    "extra_config.save_chunk_meta",
    "extra_config.fs_connector_relative_tmp_dir",
    "extra_config.fs_connector_read_ahead_size",
  ]),
];

/** Variables of LMCache that are no keys of its file. */
export const LMCACHE_VARIABLES: readonly ForeignOption[] = [
  mapped("LMCACHE_LOG_LEVEL", ["log.level"], "`CRITICAL` becomes `error`"),
  ...needless("the file that it names is read with the variables, which win over it", [
    "LMCACHE_CONFIG_FILE",
  ]),
  ...needless("the daemon reports to nobody", [
    "LMCACHE_TRACK_USAGE",
    "LMCACHE_USAGE_TRACK_INTERVAL",
    "LMCACHE_USAGE_TRACK_URL",
  ]),
  ...needless("engines and daemon agree on the way by themselves", ["LMCACHE_MP_TRANSFER_MODE"]),
  ...needless("there is one version of the engine's interface", ["LMCACHE_USE_EXPERIMENTAL"]),
  ...missing("nodes need no coordinator; events and the remote tier connect them", [
    "LMCACHE_COORDINATOR_*",
  ]),
  ...missing(HOOKS, ["LMCACHE_RUNTIME_PLUGIN_*"]),
  ...missing("blocks of KV cache alone are stored", ["LMCACHE_EC_*"]),
];
