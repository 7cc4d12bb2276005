import { positive, serviceSettings } from '@holdfast/platform';
import { z } from 'zod';

/** Every setting of the sandbox service. */
export const sandboxConfig = z.object({
  ...serviceSettings,
  /** Health endpoint on loopback; 0 = none. */
  HEALTH_PORT: z.coerce.number().int().min(0).max(65_535).default(0),
  /** `local` = processes on this machine, `kubernetes` = agent-sandbox resources on a cluster. */
  SANDBOX_PROVIDER: z.enum(['local', 'kubernetes']).default('local'),
  /** The model gateway, and its key: harnesses in sandboxes reach it through this service, which alone has the key. */
  LITELLM_GATEWAY_URL: z.string().default(''),
  LITELLM_API_KEY: z.string().default(''),
  /** A model gateway that is silent for so long is taken as gone. */
  MODEL_SILENCE_MS: positive(300_000),
  /** Folder with one folder for each coding harness, handed read-only to every local sandbox; empty = none. */
  HARNESS_DIR: z.string().default(''),
  /** bubblewrap, by name or path. */
  SANDBOX_BUBBLEWRAP: z.string().min(1).default('bwrap'),
  /** `1` = run tools as plain processes where bubblewrap cannot be had. They see everything that the service sees. */
  HOLDFAST_ALLOW_UNISOLATED: z.stringbool().default(false),
  /** A runner that does not link within this time failed to start. */
  SANDBOX_START_MS: positive(20_000),
  /** A sandbox without a call for so long loses its processes and keeps its files. */
  SANDBOX_IDLE_MS: positive(15 * 60_000),
  /** The workspace's bound; above it its writers are killed. */
  SANDBOX_WORKSPACE_BYTES: positive(5 * 1024 ** 3),
  /** No sandbox starts with less free space on the state disk. */
  SANDBOX_MIN_FREE_BYTES: positive(1024 ** 3),
  SANDBOX_MEMORY_BYTES: positive(2 * 1024 ** 3),
  SANDBOX_MAX_PROCESSES: z.coerce.number().int().min(8).default(512),
  /** What sandboxes' files are sealed with where they are kept. Whoever loses it loses them; 32 characters or more. */
  CHECKPOINT_KEY: z.string().min(32),
  /** Files, folders and links that a sandbox may hold to be kept, and their bytes on disk. */
  CHECKPOINT_MAX_FILES: positive(200_000),
  CHECKPOINT_MAX_BYTES: positive(5 * 1024 ** 3),
  /**
   * Not kept, comma-separated: a name wherever it is, or a path that begins with `workspace/` or `home/`. Folders that say
   * that they are caches (CACHEDIR.TAG) are kept empty anyway.
   */
  CHECKPOINT_EXCLUDE: z
    .string()
    .default('home/.cache,home/.npm')
    .transform((text) => text.split(',').flatMap((part) => (part.trim() === '' ? [] : [part.trim()]))),

  // What follows is for SANDBOX_PROVIDER=kubernetes.
  /** Credentials for the cluster; empty = those of the pod that this service runs in. */
  KUBECONFIG: z.string().default(''),
  /** The runner's image; an environment may name its own. */
  SANDBOX_IMAGE: z.string().default('holdfast/runner:0.1.0'),
  SANDBOX_IMAGE_PULL_POLICY: z.enum(['Always', 'IfNotPresent', 'Never']).default('IfNotPresent'),
  /** Address and port that the hub listens on; pods dial it. */
  HUB_HOST: z.string().default('127.0.0.1'),
  HUB_PORT: z.coerce.number().int().min(1).max(65_535).default(8081),
  /** The hub as pods reach it; empty = wss://HUB_HOST:HUB_PORT. */
  HUB_URL: z.string().default(''),
  /** Where NetworkPolicies let pods go, comma-separated CIDRs; empty = the address in HUB_URL. */
  HUB_CIDRS: z.string().default(''),
  /** The hub's key and certificate derive from it, the same on every replica. */
  HUB_SECRET: z.string().default(''),
  /** The hub's own certificate and key (PEM) in their place. Runners trust this certificate and no other. */
  HUB_TLS_CERT: z.string().default(''),
  HUB_TLS_KEY: z.string().default(''),
  SANDBOX_CPU_MILLIS: positive(2_000),
  /** What a sandbox is sure to get; the scheduler counts it. */
  SANDBOX_CPU_REQUEST_MILLIS: positive(50),
  SANDBOX_TMP_BYTES: positive(512 * 1024 ** 2),
  /** What the sandboxes of one workspace may take together. */
  SANDBOX_QUOTA_PODS: positive(250),
  SANDBOX_QUOTA_CPU_MILLIS: positive(500_000),
  SANDBOX_QUOTA_MEMORY_BYTES: positive(1024 ** 4),
  SANDBOX_QUOTA_STORAGE_BYTES: positive(4 * 1024 ** 4),
  /** Of the folders that the sessions of a context share; ReadWriteOnce holds them on one node. */
  SANDBOX_CONTEXT_ACCESS_MODE: z.enum(['ReadWriteMany', 'ReadWriteOnce']).default('ReadWriteMany'),
  /**
   * A claim that nobody renews for so long is removed by the cluster, with its volume. Renewed at half of it, so a platform
   * that is down for the other half loses nothing.
   */
  SANDBOX_ORPHAN_MS: positive(30 * 24 * 60 * 60_000),
  /** A node that does not answer for so long is taken as lost, its pods are replaced. */
  SANDBOX_NODE_LOST_MS: positive(30_000),
});
export type SandboxConfig = z.infer<typeof sandboxConfig>;

const REFUSED =
  /^(PATH|HOME|NODE_OPTIONS|NODE_USE_ENV_PROXY|LD_.*|HOLDFAST_.*|(https?|all|no)_proxy|(HTTPS?|ALL|NO)_PROXY|BASH_ENV|BASHOPTS|ENV|IFS|PS4|SHELLOPTS)$/;

/** `CONTAINER_ENV_X=v` as `X=v`, for every sandbox; names that would change how the sandbox itself works are refused (X6). */
export function containerEnv(environment: Readonly<Record<string, string | undefined>>): {
  env: Record<string, string>;
  refused: string[];
} {
  const env: Record<string, string> = {};
  const refused: string[] = [];
  for (const [name, value] of Object.entries(environment)) {
    if (!name.startsWith('CONTAINER_ENV_') || value === undefined) continue;
    const inner = name.slice('CONTAINER_ENV_'.length);
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(inner) || REFUSED.test(inner)) refused.push(inner);
    else env[inner] = value;
  }
  return { env, refused };
}
