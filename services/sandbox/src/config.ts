import { positive, serviceSettings } from '@holdfast/platform';
import { z } from 'zod';

/** Every setting of the sandbox service. */
export const sandboxConfig = z.object({
  ...serviceSettings,
  /** Health endpoint on loopback; 0 = none. */
  HEALTH_PORT: z.coerce.number().int().min(0).max(65_535).default(0),
  /** Kubernetes joins later. */
  SANDBOX_PROVIDER: z.enum(['local']).default('local'),
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
