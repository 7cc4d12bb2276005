import { z } from 'zod';
import { idSchema } from './ids.ts';
import type { DeepReadonly } from './json.ts';
import { text, timestamp } from './wire/common.ts';
import { LIMITS } from './wire/limits.ts';

/**
 * Credentials and the commands that make and end them. A credential's text is a prefix and 43 base64url characters
 * (256 random bits). The gateway mints it and shows it once; only its SHA-256 crosses the bus and is stored, so
 * neither Postgres, NATS nor a stored reply ever holds one.
 */
export const CREDENTIAL_KINDS = ['api_key', 'dashboard', 'link', 'environment_key', 'work_token'] as const;
export type CredentialKind = (typeof CREDENTIAL_KINDS)[number];
export const CREDENTIAL_PREFIXES: Readonly<Record<CredentialKind, string>> = {
  api_key: 'hf_',
  dashboard: 'hfs_',
  link: 'hfl_',
  environment_key: 'hfe_',
  work_token: 'hfw_',
};
/** A one-time sign-in link lives this long. */
export const LINK_TTL_MS = 10 * 60_000;
/** A dashboard session lives this long; it also ends with its API key. */
export const DASHBOARD_SESSION_TTL_MS = 7 * 24 * 3_600_000;

const CREDENTIAL_TEXT = /^(hf_|hfs_|hfl_|hfe_|hfw_)[A-Za-z0-9_-]{43}$/;

/** The kind that a credential's text claims to be; undefined when it has not the shape of one. */
export function credentialKind(credential: string): CredentialKind | undefined {
  const prefix = CREDENTIAL_TEXT.exec(credential)?.[1];
  return CREDENTIAL_KINDS.find((kind) => CREDENTIAL_PREFIXES[kind] === prefix);
}

/** What lists show of a credential: enough to recognise it, too little to use it. */
export function credentialHint(credential: string): string {
  return `${credential.slice(0, credential.indexOf('_') + 1)}…${credential.slice(-4)}`;
}

/** SHA-256 of the whole credential text, hex; the table `api_keys` holds the same 32 bytes in `hash`. */
export const credentialHash = z.string().regex(/^[0-9a-f]{64}$/);
const minted = z.strictObject({ hash: credentialHash, hint: z.string().min(1).max(32) });

/**
 * What a worker's token of one work item is good for after that item was last heard of, in milliseconds: it opens the
 * session for as long as the lease stands, and afterwards only tells its worker that it is over.
 */
export const WORK_TOKEN_TTL_MS = 3_600_000;

/** `cmd.api_key.<new id>.create` → {@link ApiKeyResource}; a repeat of the request is refused, see `credential.made-before`. */
export const createApiKeyCommand = minted.extend({
  name: text(LIMITS.nameChars, 1),
  /** Makes it an environment key: workers poll that environment with it, and it does nothing else. */
  environment_id: idSchema('environment').optional(),
});
export type CreateApiKeyCommand = z.infer<typeof createApiKeyCommand>;

/**
 * `cmd.api_key.<id>.revoke`, body `{}` → {@link ApiKeyResource}. Any kind; revoking a revoked one changes nothing.
 * Children (`parent_id` = id) end with it: readers check the parent too. After the commit the session service publishes
 * {@link CredentialRevoked} on `CREDENTIAL_REVOKED`.
 */
export const revokeApiKeyCommand = z.strictObject({});

/**
 * `cmd.api_key.<new id>.create-link` → {@link ChildCredential}: a row of kind `link`, expiring {@link LINK_TTL_MS} from
 * Postgres' clock. `parent_id` is an API key of the workspace, alive, else `not-found`.
 */
export const createLinkCommand = minted.extend({ parent_id: idSchema('apiKey') });
export type CreateLinkCommand = z.infer<typeof createLinkCommand>;

/** `cmd.api_key.<new id>.create-dashboard-session` → {@link ChildCredential}: kind `dashboard`, {@link DASHBOARD_SESSION_TTL_MS}. */
export const createDashboardSessionCommand = createLinkCommand;
export type CreateDashboardSessionCommand = CreateLinkCommand;

/**
 * `cmd.api_key.<link id>.redeem-link` → {@link ChildCredential} of the new dashboard session, whose parent is the link's
 * parent. The link is spent (`revoked_at`) in the same transaction: of two redeemers one gets `credential.link-spent`
 * (kind `unauthenticated`), as does a late one.
 */
export const redeemLinkCommand = minted.extend({ session_id: idSchema('apiKey') });
export type RedeemLinkCommand = z.infer<typeof redeemLinkCommand>;

/** Reply of the commands that make a child credential. */
export const childCredential = z.strictObject({ id: z.string(), expires_at: timestamp });
export type ChildCredential = DeepReadonly<z.infer<typeof childCredential>>;

/** An API key as `/v1/x/api_keys` shows it; the key itself is there once, in the answer to its creation. */
export const apiKeyResource = z.strictObject({
  id: z.string(),
  type: z.literal('api_key'),
  name: z.string(),
  hint: z.string(),
  created_at: timestamp,
  expires_at: timestamp.nullable(),
  revoked_at: timestamp.nullable(),
  last_used_at: z.null(),
});
export type ApiKeyResource = DeepReadonly<z.infer<typeof apiKeyResource>>;
/** The key of an environment's workers. */
export const environmentKeyResource = apiKeyResource.extend({
  type: z.literal('environment_key'),
  environment_id: z.string(),
});
export type EnvironmentKeyResource = DeepReadonly<z.infer<typeof environmentKeyResource>>;

/** Body of `CREDENTIAL_REVOKED`: this credential and its children are no longer valid. */
export interface CredentialRevoked {
  readonly id: string;
}
