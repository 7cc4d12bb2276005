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

const cloudConfig = z.strictObject({
  type: z.literal('cloud'),
  networking: networking.nullish(),
  packages: packages.nullish(),
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

const environmentConfig = z.strictObject({
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
});
/** A configuration with every member present, as responses have it. */
export type EnvironmentConfig = DeepReadonly<z.infer<typeof environmentConfig>>;
export type ResolvedNetworking = EnvironmentConfig['networking'];

/** What is left out stays as it was, else it is the default: unrestricted; where limited, nothing is allowed. */
export function resolveEnvironmentConfig(
  param: z.infer<typeof cloudConfig> | null | undefined,
  before?: EnvironmentConfig,
): EnvironmentConfig {
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
