import { createHash, randomBytes } from 'node:crypto';
import {
  AppError,
  CREDENTIAL_PREFIXES,
  type CredentialKind,
  credentialHint,
  credentialKind,
} from '@holdfast/contracts';
import type pg from 'pg';

/** Who calls: a credential and the workspace it is bound to. */
export interface Principal {
  readonly id: string;
  readonly workspaceId: string;
  readonly kind: CredentialKind;
  /** The API key that a dashboard session or link hangs on. */
  readonly parentId: string | null;
}

/** The API key that a caller's requests and streams count for. */
export function keyOf(principal: Principal): string {
  return principal.parentId ?? principal.id;
}

/** How long a looked-up credential is believed without asking again; a revocation on the bus ends it at once. */
const BELIEVE_MS = 10_000;
const MAX_CACHED = 10_000;

/** A credential counts while neither it nor the key that it hangs on is revoked, and until it runs out. */
const VALID = `api_keys k left join api_keys p on p.id = k.parent_id
  where k.revoked_at is null and p.revoked_at is null and (k.expires_at is null or k.expires_at > clock_timestamp())`;

export function hashOf(credential: string): string {
  return createHash('sha256').update(credential).digest('hex');
}

/** A new credential: its text is shown once, its hash travels on. */
export function mintCredential(kind: CredentialKind): { text: string; hash: string; hint: string } {
  const text = CREDENTIAL_PREFIXES[kind] + randomBytes(32).toString('base64url');
  return { text, hash: hashOf(text), hint: credentialHint(text) };
}

/** Looks credentials up by their hash. */
export class Authenticator {
  readonly #pool: pg.Pool;
  readonly #known = new Map<string, { principal: Principal; untilMs: number }>();

  constructor(pool: pg.Pool) {
    this.#pool = pool;
  }

  /** The caller of a request. @throws AppError `auth.missing`, `auth.invalid` (kind `unauthenticated`). */
  authenticate(headers: {
    readonly 'x-api-key'?: string | string[] | undefined;
    readonly authorization?: string | undefined;
  }): Promise<Principal> {
    const key = headers['x-api-key'];
    const credential =
      typeof key === 'string' && key !== '' ? key : /^Bearer\s+(\S+)$/i.exec(headers.authorization ?? '')?.[1];
    if (credential === undefined) {
      throw new AppError(
        'unauthenticated',
        'auth.missing',
        'An API key is needed: send it as x-api-key or as Authorization: Bearer.',
      );
    }
    return this.find(credential);
  }

  /** @throws AppError `auth.invalid` */
  async find(credential: string): Promise<Principal> {
    const kind = credentialKind(credential);
    if (kind === undefined || kind === 'link') throw invalid();
    const hash = hashOf(credential);
    const known = this.#known.get(hash);
    if (known !== undefined && known.untilMs > Date.now()) return known.principal;
    const principal = await this.#lookUp(hash);
    if (principal === null || principal.kind !== kind) {
      this.#known.delete(hash);
      throw invalid();
    }
    if (this.#known.size >= MAX_CACHED) this.#known.clear();
    this.#known.set(hash, { principal, untilMs: Date.now() + BELIEVE_MS });
    return principal;
  }

  /** A one-time link that has not run out; redeeming it decides. */
  async findLink(credential: string): Promise<Principal> {
    const principal = credentialKind(credential) === 'link' ? await this.#lookUp(hashOf(credential)) : null;
    if (principal === null)
      throw new AppError(
        'unauthenticated',
        'credential.link-spent',
        'This link was used or has run out; make a new one.',
      );
    return principal;
  }

  /** Forgets a revoked credential and those that hang on it. */
  forget(id: string): void {
    for (const [hash, { principal }] of this.#known) {
      if (principal.id === id || principal.parentId === id) this.#known.delete(hash);
    }
  }

  /** Those of these credentials that are no longer valid: revoked, run out, or gone with their parent. */
  async lapsed(ids: readonly string[]): Promise<string[]> {
    const { rows } = await this.#pool.query<{ id: string }>(`select k.id from ${VALID} and k.id = any ($1)`, [ids]);
    const valid = new Set(rows.map(({ id }) => id));
    return ids.filter((id) => !valid.has(id));
  }

  async #lookUp(hash: string): Promise<Principal | null> {
    const { rows } = await this.#pool.query<{
      id: string;
      workspace_id: string;
      kind: CredentialKind;
      parent_id: string | null;
    }>({
      name: 'find-credential',
      text: `select k.id, k.workspace_id, k.kind, k.parent_id from ${VALID} and k.hash = decode($1, 'hex')`,
      values: [hash],
    });
    const row = rows[0];
    return row === undefined
      ? null
      : { id: row.id, workspaceId: row.workspace_id, kind: row.kind, parentId: row.parent_id };
  }
}

function invalid(): AppError {
  return new AppError('unauthenticated', 'auth.invalid', 'The API key is not valid.');
}
