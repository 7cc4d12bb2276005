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
  /** What an environment's worker is bound to; null for callers that have their workspace. */
  readonly bound: Bound | null;
}
export interface Bound {
  readonly environmentId: string;
  /** The work item of a token; null for the environment's key. */
  readonly workId: string | null;
  /** The session that the token opens; null while its work item is not, or no longer, its worker's. */
  readonly sessionId: string | null;
}

/** The API key that a caller's requests and streams count for. */
export function keyOf(principal: Principal): string {
  return principal.parentId ?? principal.id;
}

/** How long a looked-up credential is believed without asking again; a revocation on the bus ends it at once. */
const BELIEVE_MS = 10_000;
const MAX_CACHED = 10_000;

/** A token opens its session only while its work item is its worker's. */
const WORK_IS_ALIVE = `w.state in ('starting', 'active', 'stopping')`;

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
    // A work item that was just handed out is its worker's in a moment.
    if (principal.bound?.workId != null && principal.bound.sessionId === null) return principal;
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

  /** Those of these credentials that may read no session: revoked, run out, gone with their parent, or a token whose work ended. */
  async lapsed(ids: readonly string[]): Promise<string[]> {
    const { rows } = await this.#pool.query<{ id: string }>(
      `select k.id from ${VALID} and k.id = any ($1)
         and (k.work_id is null or exists (select 1 from work_items w where w.id = k.work_id and ${WORK_IS_ALIVE}))`,
      [ids],
    );
    const valid = new Set(rows.map(({ id }) => id));
    return ids.filter((id) => !valid.has(id));
  }

  async #lookUp(hash: string): Promise<Principal | null> {
    const { rows } = await this.#pool.query<{
      id: string;
      workspace_id: string;
      kind: CredentialKind;
      parent_id: string | null;
      environment_id: string | null;
      work_id: string | null;
      session_id: string | null;
    }>({
      name: 'find-credential',
      text: `select k.id, k.workspace_id, k.kind, k.parent_id, k.environment_id, k.work_id,
               (select w.session_id from work_items w where w.id = k.work_id and ${WORK_IS_ALIVE}) as session_id
             from ${VALID} and k.hash = decode($1, 'hex')`,
      values: [hash],
    });
    const row = rows[0];
    return row === undefined
      ? null
      : {
          id: row.id,
          workspaceId: row.workspace_id,
          kind: row.kind,
          parentId: row.parent_id,
          bound:
            row.environment_id === null
              ? null
              : { environmentId: row.environment_id, workId: row.work_id, sessionId: row.session_id },
        };
  }
}

function invalid(): AppError {
  return new AppError('unauthenticated', 'auth.invalid', 'The API key is not valid.');
}
