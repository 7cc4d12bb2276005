import { positive, serviceSettings } from '@holdfast/platform';
import { z } from 'zod';

/** Every setting of the session service. Times in milliseconds. */
export const sessionConfig = z.object({
  ...serviceSettings,
  /** Health endpoint on loopback; 0 = none. */
  HEALTH_PORT: z.coerce.number().int().min(0).max(65_535).default(0),
  LITELLM_GATEWAY_URL: z.string().default(''),
  LITELLM_API_KEY: z.string().default(''),
  /** Coding harnesses that sandboxes have, `name@version` separated by commas; agents may name these and no others. */
  HARNESSES: z
    .string()
    .default('')
    .transform(
      (text) =>
        new Map(
          text
            .split(',')
            .filter((entry) => entry !== '')
            .map((entry) => {
              const [name = '', version = ''] = entry.trim().split('@');
              return [name, version] as const;
            }),
        ),
    ),
  /** A turn worker that does not renew its lease for so long is taken over. */
  TURN_LEASE_MS: positive(5_000),
  /** Turns that one process runs at once; more wait for another replica. */
  MAX_TURNS: positive(512),
  /** Bounds of one message's turn (T6). */
  TURN_MAX_MODEL_STEPS: positive(200),
  TURN_MAX_OUTPUT_TOKENS: positive(1_000_000),
  TURN_MAX_WALL_MS: positive(2 * 3_600_000),
  TURN_MAX_TOOL_MS: positive(3_600_000),
  /** Longest a single tool call may run, whatever the model asks for. */
  TOOL_TIMEOUT_MS: positive(600_000),
  TOOL_DEFAULT_TIMEOUT_MS: positive(120_000),
  /**
   * An environment worker that is not heard from for so long has lost its session: calls that it may have begun are
   * closed, the rest goes to the next worker.
   */
  WORK_LEASE_MS: positive(30_000),
  /** How long a tool call waits for its sandbox. */
  SANDBOX_WAIT_MS: positive(60_000),
  /** Retries of a failed model call; waits double from the first, ≤ 30 s, unless the gateway names a time. */
  MODEL_MAX_RETRIES: z.coerce.number().int().min(0).default(4),
  MODEL_RETRY_FIRST_MS: positive(500),
  /**
   * Models that are spoken to in `/v1/messages`, comma-separated, `*` for any text. `auto`: those that the gateway's
   * `/v1/model/info` gives to the provider `anthropic` alone. All others are spoken to in `/v1/chat/completions`.
   */
  MODEL_MESSAGES: z.string().default('auto'),
  /** A model gateway that is silent for so long is taken as gone. */
  MODEL_SILENCE_MS: positive(300_000),
  MODEL_MAX_OUTPUT_TOKENS: positive(16_384),
  /** Context above so many tokens is compacted before the next model call. */
  MODEL_CONTEXT_TOKENS: positive(150_000),
  /** Largest output of a session that is kept as a file. */
  FILE_MAX_BYTES: positive(500 * 1024 ** 2),
  /** What the files of one workspace may hold together. */
  FILE_QUOTA_BYTES: positive(500 * 1024 ** 3),
  WEB_FETCH_TIMEOUT_MS: positive(30_000),
  WEB_FETCH_MAX_BYTES: positive(8 * 1024 * 1024),
  /** `host:port,…` that web_fetch may reach although they are not public; for operators with an internal mirror. */
  WEB_FETCH_ALLOW_PRIVATE: z.string().default(''),
  /** How long an MCP server may take to be connected to, and then to list its tools. */
  MCP_CONNECT_MS: positive(10_000),
  /** Of one answer of an MCP server. */
  MCP_MAX_BYTES: positive(8 * 1024 * 1024),
  /** A server that lists more is not used. */
  MCP_MAX_TOOLS: positive(128),
  /** `host:port,…` of MCP servers that may be reached although they are not public. */
  MCP_ALLOW_PRIVATE: z.string().default(''),
});
export type SessionConfig = z.infer<typeof sessionConfig>;
