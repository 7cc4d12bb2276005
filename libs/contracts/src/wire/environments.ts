import { z } from 'zod';
import { metadata, metadataPatch, text } from './common.ts';
import { LIMITS } from './limits.ts';

const hostPattern = /^(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/;
const networking = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('unrestricted') }),
  z.strictObject({
    type: z.literal('limited'),
    allowed_hosts: z
      .array(z.string().regex(hostPattern, 'must be a host name, an IPv4 address or *.domain'))
      .max(LIMITS.allowedHosts)
      .optional(),
    allow_mcp_servers: z.boolean().optional(),
    allow_package_managers: z.boolean().optional(),
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

export const createEnvironmentBody = z.strictObject({
  name: text(LIMITS.nameChars, 1),
  description: text(LIMITS.descriptionChars).nullish(),
  config: environmentConfigParam.nullish(),
  scope: z.enum(['organization', 'account']).nullish(),
  metadata: metadata.nullish(),
});
export type CreateEnvironmentBody = z.infer<typeof createEnvironmentBody>;

export const updateEnvironmentBody = z.strictObject({
  name: text(LIMITS.nameChars, 1).optional(),
  description: text(LIMITS.descriptionChars).nullish(),
  config: environmentConfigParam.nullish(),
  scope: z.enum(['organization', 'account']).nullish(),
  metadata: metadataPatch.nullish(),
});
export type UpdateEnvironmentBody = z.infer<typeof updateEnvironmentBody>;

/** Networking with every member present, as responses have it. */
export type ResolvedNetworking =
  | { readonly type: 'unrestricted' }
  | {
      readonly type: 'limited';
      readonly allowed_hosts: readonly string[];
      readonly allow_mcp_servers: boolean;
      readonly allow_package_managers: boolean;
    };
export interface EnvironmentConfig {
  readonly type: 'cloud';
  readonly networking: ResolvedNetworking;
  readonly packages: {
    readonly apt: [];
    readonly cargo: [];
    readonly gem: [];
    readonly go: [];
    readonly npm: [];
    readonly pip: [];
  };
}

/** Omitted config means the cloud defaults; networking is unrestricted unless it says otherwise. */
export function resolveEnvironmentConfig(networkingParam: Networking | null | undefined): EnvironmentConfig {
  const chosen = networkingParam ?? { type: 'unrestricted' as const };
  return {
    type: 'cloud',
    networking:
      chosen.type === 'unrestricted'
        ? chosen
        : {
            type: 'limited',
            allowed_hosts: chosen.allowed_hosts ?? [],
            allow_mcp_servers: chosen.allow_mcp_servers ?? false,
            allow_package_managers: chosen.allow_package_managers ?? false,
          },
    packages: { apt: [], cargo: [], gem: [], go: [], npm: [], pip: [] },
  };
}

/** The environment resource as the wire has it. */
export interface Environment {
  readonly id: string;
  readonly type: 'environment';
  readonly name: string;
  readonly description: string | null;
  readonly scope: 'organization' | 'account';
  readonly metadata: Readonly<Record<string, string>>;
  readonly config: EnvironmentConfig;
  readonly created_at: string;
  readonly updated_at: string;
  readonly archived_at: string | null;
}
