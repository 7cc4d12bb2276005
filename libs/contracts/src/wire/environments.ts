import { z } from 'zod';
import type { DeepReadonly } from '../json.ts';
import { metadata, metadataPatch, naming, text, timestamp } from './common.ts';
import { LIMITS } from './limits.ts';

const hostPattern = /^(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/;
const networking = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('unrestricted') }),
  z.strictObject({
    type: z.literal('limited'),
    allowed_hosts: z
      .array(z.string().regex(hostPattern, 'must be a host name, an IPv4 address or *.domain'))
      .max(LIMITS.allowedHosts)
      .nullish(),
    allow_mcp_servers: z.boolean().nullish(),
    allow_package_managers: z.boolean().nullish(),
  }),
]);
export type Networking = z.infer<typeof networking>;

const noPackages = z.array(z.string()).max(0, 'environment packages are not supported yet; leave them empty').nullish();
const packages = z.strictObject({
  type: z.literal('packages').optional(),
  apt: noPackages,
  cargo: noPackages,
  gem: noPackages,
  go: noPackages,
  npm: noPackages,
  pip: noPackages,
});

/** A Kubernetes label key or value, a DNS name, an image: what the cluster itself would refuse is refused here. */
const labelKey = z
  .string()
  .max(317)
  .regex(
    /^(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$/,
    'must be a Kubernetes label key',
  );
const labelValue = z
  .string()
  .regex(/^(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$/, 'must be a Kubernetes label value');
const dnsName = z
  .string()
  .max(253)
  .regex(/^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*$/, 'must be a lower-case DNS name');
const imageName = z
  .string()
  .max(512)
  .regex(/^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$/, 'must be an image reference');
const toleration = z
  .strictObject({
    key: labelKey.optional(),
    operator: z.enum(['Exists', 'Equal']).optional(),
    value: labelValue.optional(),
    effect: z.enum(['NoSchedule', 'PreferNoSchedule', 'NoExecute']).optional(),
  })
  .refine(({ key, operator }) => key !== undefined || operator === 'Exists', 'without a key must have operator Exists')
  .refine(({ operator, value }) => operator !== 'Exists' || !value, 'with operator Exists must have no value');
const workspaceKind = z.enum(['volume', 'ephemeral']);
const sandboxMembers = {
  image: imageName.nullable(),
  cpu_millis: z.int().min(50).max(256_000).nullable(),
  memory_mib: z.int().min(64).max(4_194_304).nullable(),
  runtime_class: dnsName.nullable(),
  node_selector: z
    .record(labelKey, labelValue)
    .refine(
      (map) => Object.keys(map).length <= LIMITS.nodeSelectors,
      `must have at most ${LIMITS.nodeSelectors} labels`,
    ),
  tolerations: z.array(toleration).max(LIMITS.tolerations),
  workspace: workspaceKind,
  workspace_mib: z.int().min(16).max(16_777_216).nullable(),
  storage_class: dnsName.nullable(),
  pool_size: z.int().min(0).max(LIMITS.poolSize),
  idle_seconds: z.int().min(5).max(604_800).nullable(),
  max_lifetime_seconds: z.int().min(60).max(31_536_000).nullable(),
};
/**
 * How sandboxes of an environment are made; our addition to the wire contract. Null = the platform's own setting. What
 * only a cluster has (image, runtime class, placement, pool, storage class) means nothing to the local provider.
 *
 * `workspace`: a `volume` keeps files while the sandbox is suspended; an `ephemeral` one is given back when idle and its
 * files are gone. `pool_size`: sandboxes that are kept warm. There is no way to ask for privileges.
 */
const sandboxConfig = z.strictObject(sandboxMembers);
export type SandboxEnvironment = DeepReadonly<z.infer<typeof sandboxConfig>>;
export const DEFAULT_SANDBOX: SandboxEnvironment = Object.freeze({
  image: null,
  cpu_millis: null,
  memory_mib: null,
  runtime_class: null,
  node_selector: {},
  tolerations: [],
  workspace: 'volume',
  workspace_mib: null,
  storage_class: null,
  pool_size: 0,
  idle_seconds: null,
  max_lifetime_seconds: null,
});

const cloudConfig = z.strictObject({
  type: z.literal('cloud'),
  networking: networking.nullish(),
  packages: packages.nullish(),
  /** What is left out stays as it was, else it is the default; null resets all of it. */
  x_sandbox: sandboxConfig.partial().nullish(),
});
export const environmentConfigParam = z.discriminatedUnion('type', [
  cloudConfig,
  z.strictObject({ type: z.literal('self_hosted') }),
]);

const scope = z.literal('organization', { error: naming('account') }).nullish();

export const createEnvironmentBody = z.strictObject({
  name: text(LIMITS.nameChars, 1),
  description: text(LIMITS.descriptionChars).nullish(),
  config: environmentConfigParam.nullish(),
  scope,
  metadata: metadata.nullish(),
});
export type CreateEnvironmentBody = z.infer<typeof createEnvironmentBody>;

export const updateEnvironmentBody = z.strictObject({
  name: text(LIMITS.nameChars, 1).nullish(),
  description: text(LIMITS.descriptionChars).nullish(),
  config: environmentConfigParam.nullish(),
  scope,
  metadata: metadataPatch.nullish(),
});
export type UpdateEnvironmentBody = z.infer<typeof updateEnvironmentBody>;

const resolvedCloudConfig = z.strictObject({
  type: z.literal('cloud'),
  networking: z.discriminatedUnion('type', [
    z.strictObject({ type: z.literal('unrestricted') }),
    z.strictObject({
      type: z.literal('limited'),
      allowed_hosts: z.array(z.string()),
      allow_mcp_servers: z.boolean(),
      allow_package_managers: z.boolean(),
    }),
  ]),
  packages: z.strictObject({
    apt: z.array(z.never()),
    cargo: z.array(z.never()),
    gem: z.array(z.never()),
    go: z.array(z.never()),
    npm: z.array(z.never()),
    pip: z.array(z.never()),
  }),
  /** Absent in environments that were stored before it existed. */
  x_sandbox: sandboxConfig.optional(),
});
/** Of an environment whose sandboxes the platform makes, with every member present, as responses have it. */
export type CloudConfig = DeepReadonly<z.infer<typeof resolvedCloudConfig>>;
export type ResolvedNetworking = CloudConfig['networking'];
/** `self_hosted`: an environment worker runs the tools, and the platform makes nothing. */
const environmentConfig = z.discriminatedUnion('type', [
  resolvedCloudConfig,
  z.strictObject({ type: z.literal('self_hosted') }),
]);
export type EnvironmentConfig = DeepReadonly<z.infer<typeof environmentConfig>>;

/** How sandboxes of an environment are made, with every member. */
export function sandboxOf(config: CloudConfig): SandboxEnvironment {
  return { ...DEFAULT_SANDBOX, ...config.x_sandbox };
}

function withDefined<T extends object>(before: T, changes: { readonly [K in keyof T]?: T[K] | undefined }): T {
  return { ...before, ...Object.fromEntries(Object.entries(changes).filter(([, value]) => value !== undefined)) };
}

/** What is left out stays as it was, else it is the default: unrestricted; where limited, nothing is allowed. */
export function resolveCloudConfig(
  param: z.infer<typeof cloudConfig> | null | undefined,
  before?: CloudConfig,
): CloudConfig {
  const given = param?.networking ?? before?.networking ?? { type: 'unrestricted' };
  const old = before?.networking.type === 'limited' ? before.networking : undefined;
  return {
    type: 'cloud',
    networking:
      given.type === 'unrestricted'
        ? given
        : {
            type: 'limited',
            allowed_hosts: given.allowed_hosts ?? old?.allowed_hosts ?? [],
            allow_mcp_servers: given.allow_mcp_servers ?? old?.allow_mcp_servers ?? false,
            allow_package_managers: given.allow_package_managers ?? old?.allow_package_managers ?? false,
          },
    packages: { apt: [], cargo: [], gem: [], go: [], npm: [], pip: [] },
    x_sandbox: withDefined(
      param?.x_sandbox === null || before === undefined ? DEFAULT_SANDBOX : sandboxOf(before),
      param?.x_sandbox ?? {},
    ),
  };
}

/** The environment resource as the wire has it. */
export const environmentResource = z.strictObject({
  id: z.string(),
  type: z.literal('environment'),
  name: z.string(),
  description: z.string().nullable(),
  scope: z.literal('organization'),
  metadata: z.record(z.string(), z.string()),
  config: environmentConfig,
  created_at: timestamp,
  updated_at: timestamp,
  archived_at: timestamp.nullable(),
});
export type Environment = DeepReadonly<z.infer<typeof environmentResource>>;

/** `example.com` allows itself, `*.example.com` its subdomains and not the apex, as the wire contract has it. */
export function hostAllowed(host: string, allowed: readonly string[]): boolean {
  const name = host.toLowerCase().replace(/\.$/, '');
  return allowed.some((entry) => {
    const rule = entry.toLowerCase();
    return rule.startsWith('*.') ? name.endsWith(rule.slice(1)) && name.length > rule.length - 1 : name === rule;
  });
}
