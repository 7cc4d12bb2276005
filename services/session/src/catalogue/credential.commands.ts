import {
  type ApiKeyResource,
  AppError,
  type ChildCredential,
  type Command,
  type CreateApiKeyCommand,
  type CreateLinkCommand,
  type CredentialKind,
  DASHBOARD_SESSION_TTL_MS,
  type EnvironmentKeyResource,
  LINK_TTL_MS,
  parseStream,
  type RedeemLinkCommand,
  type StoredEvent,
  streamOf,
} from '@holdfast/contracts';
import { type CompanionStatement, derivedEventId, type EventLog, type StreamAppend } from '@holdfast/event-store';
import type { DataSource } from 'typeorm';
import { commandMetadata, type Idempotent } from '../commands/idempotent.ts';
import { ApiKeyEntity } from './catalogue.entities.ts';
import type { Catalogue } from './catalogue.ts';

type KeyResource = ApiKeyResource | EnvironmentKeyResource;

/** API keys, environment keys, dashboard sessions and one-time links. No credential text ever reaches this service. */
export class CredentialCommands {
  readonly #log: EventLog;
  readonly #source: DataSource;
  readonly #catalogue: Catalogue;
  readonly #idempotent: Idempotent;
  readonly #onRevoked: (id: string) => void;

  constructor(
    log: EventLog,
    source: DataSource,
    catalogue: Catalogue,
    idempotent: Idempotent,
    onRevoked: (id: string) => void,
  ) {
    this.#log = log;
    this.#source = source;
    this.#catalogue = catalogue;
    this.#idempotent = idempotent;
    this.#onRevoked = onRevoked;
  }

  /** @throws AppError `credential.made-before` for a repeat: the text of the key that stands is known to nobody here. */
  createApiKey(id: string, command: Command<CreateApiKeyCommand>): Promise<KeyResource> {
    const { workspaceId } = command;
    const { name, hash, hint, environment_id: environmentId } = command.body;
    const madeBefore = (events: readonly StoredEvent[]): Promise<KeyResource> => {
      const made = parseStream(events[0]?.streamId ?? '').id;
      // The same command, asked again: its caller has the text.
      if (made === id) return this.#resource(workspaceId, id);
      throw new AppError(
        'rejected',
        'credential.made-before',
        `An earlier attempt of this request made the key ${made}, and only that answer had its text. Revoke it and make another.`,
        { details: { id: made } },
      );
    };
    return this.#idempotent.run(command, madeBefore, async (claim) => {
      if (environmentId !== undefined) await this.#requireSelfHosted(workspaceId, environmentId);
      const kind = environmentId === undefined ? 'api_key' : 'environment_key';
      const insert = insertKey({ id, workspaceId, name, kind, hash, hint, parentId: null, ttlMs: null, environmentId });
      await this.#append(command, [created(id, name, kind, environmentId)], [insert, ...claim]);
      return this.#resource(workspaceId, id);
    });
  }

  async #requireSelfHosted(workspaceId: string, environmentId: string): Promise<void> {
    const { config } = await this.#catalogue.environment(workspaceId, environmentId);
    if (config.type === 'self_hosted') return;
    throw new AppError(
      'invalid',
      'environment.not-self-hosted',
      `The environment ${environmentId} is not self_hosted: it has no workers and needs no key.`,
    );
  }

  async revoke(id: string, command: Command): Promise<KeyResource> {
    const key = await this.#resource(command.workspaceId, id);
    if (key.revoked_at !== null) return key;
    const revoke = {
      text: 'update api_keys set revoked_at = clock_timestamp() where workspace_id = $1 and (id = $2 or parent_id = $2) and revoked_at is null',
      values: [command.workspaceId, id],
    };
    await this.#append(command, [{ id, type: 'api_key.revoked', data: {} }], [revoke]);
    this.#onRevoked(id);
    return this.#resource(command.workspaceId, id);
  }

  createLink(id: string, command: Command<CreateLinkCommand>): Promise<ChildCredential> {
    return this.#child(id, command, 'link', LINK_TTL_MS);
  }

  createDashboardSession(id: string, command: Command<CreateLinkCommand>): Promise<ChildCredential> {
    return this.#child(id, command, 'dashboard', DASHBOARD_SESSION_TTL_MS);
  }

  /** Spends a link for a dashboard session; of two redeemers one wins. */
  redeemLink(linkId: string, command: Command<RedeemLinkCommand>): Promise<ChildCredential> {
    const answer = () => this.#childOf(command.workspaceId, command.body.session_id);
    return this.#idempotent.run(command, answer, () => this.#redeem(linkId, command));
  }

  async #redeem(linkId: string, command: Command<RedeemLinkCommand>): Promise<ChildCredential> {
    const spent = new AppError(
      'unauthenticated',
      'credential.link-spent',
      'This link was used or has run out; make a new one.',
    );
    const link = await this.#source
      .getRepository(ApiKeyEntity)
      .findOneBy({ id: linkId, workspaceId: command.workspaceId, kind: 'link' });
    if (link?.parentId == null) throw spent;
    const { session_id: id, hash, hint } = command.body;
    const spend: CompanionStatement = {
      text: `update api_keys l set revoked_at = clock_timestamp() from api_keys p
             where l.id = $1 and l.revoked_at is null and l.expires_at > clock_timestamp() and p.id = l.parent_id and p.revoked_at is null`,
      values: [linkId],
      rows: 1,
    };
    const insert = insertKey({
      id,
      workspaceId: command.workspaceId,
      name: 'dashboard',
      kind: 'dashboard',
      hash,
      hint,
      parentId: link.parentId,
      ttlMs: DASHBOARD_SESSION_TTL_MS,
    });
    try {
      await this.#append(
        command,
        [{ id: linkId, type: 'api_key.revoked', data: {} }, created(id, 'dashboard', 'dashboard')],
        [spend, insert],
      );
    } catch (error) {
      if (error instanceof AppError && error.details.constraint === 'row-count') throw spent;
      throw error;
    }
    return this.#childOf(command.workspaceId, id);
  }

  async #child(
    id: string,
    command: Command<CreateLinkCommand>,
    kind: 'link' | 'dashboard',
    ttlMs: number,
  ): Promise<ChildCredential> {
    const { parent_id: parentId, hash, hint } = command.body;
    const parent = await this.#source
      .getRepository(ApiKeyEntity)
      .findOneBy({ id: parentId, workspaceId: command.workspaceId, kind: 'api_key' });
    if (parent === null || parent.revokedAt !== null) throw notFound(parentId);
    const { workspaceId } = command;
    const insert = insertKey({ id, workspaceId, name: kind, kind, hash, hint, parentId, ttlMs });
    const answer = () => this.#childOf(workspaceId, id);
    return this.#idempotent.run(command, answer, async () => {
      await this.#append(command, [created(id, kind, kind)], [insert]);
      return answer();
    });
  }

  async #append(
    command: Command,
    events: readonly { id: string; type: string; data: StreamAppend['events'][number]['data'] }[],
    statements: readonly CompanionStatement[],
  ): Promise<void> {
    await this.#log.append({
      appends: events.map(({ id, type, data }, n) => ({
        streamId: streamOf('api_key', id),
        workspaceId: command.workspaceId,
        events: [
          {
            id: derivedEventId(command.commandId, n),
            type,
            data,
            metadata: commandMetadata(command),
          },
        ],
      })),
      statements,
    });
  }

  async #row(workspaceId: string, id: string): Promise<ApiKeyEntity> {
    const row = await this.#source.getRepository(ApiKeyEntity).findOneBy({ id, workspaceId });
    if (row === null) throw notFound(id);
    return row;
  }

  async #resource(workspaceId: string, id: string): Promise<KeyResource> {
    const row = await this.#row(workspaceId, id);
    const facts = {
      id: row.id,
      name: row.name,
      hint: row.hint,
      created_at: row.createdAt.toISOString(),
      expires_at: row.expiresAt?.toISOString() ?? null,
      revoked_at: row.revokedAt?.toISOString() ?? null,
      last_used_at: null,
    };
    return row.environmentId === null
      ? { ...facts, type: 'api_key' }
      : { ...facts, type: 'environment_key', environment_id: row.environmentId };
  }

  async #childOf(workspaceId: string, id: string): Promise<ChildCredential> {
    const row = await this.#row(workspaceId, id);
    return { id, expires_at: row.expiresAt?.toISOString() ?? '' };
  }
}

function notFound(id: string): AppError {
  return new AppError('not-found', 'credential.not-found', `There is no credential ${id}.`);
}

function created(id: string, name: string, kind: CredentialKind, environmentId?: string) {
  const of = environmentId === undefined ? {} : { environment_id: environmentId };
  return { id, type: 'api_key.created', data: { name, kind, ...of } };
}

function insertKey(key: {
  id: string;
  workspaceId: string;
  name: string;
  kind: CredentialKind;
  hash: string;
  hint: string;
  parentId: string | null;
  ttlMs: number | null;
  environmentId?: string | undefined;
}): CompanionStatement {
  return {
    text: `insert into api_keys (id, workspace_id, name, kind, hash, hint, parent_id, expires_at, environment_id)
           values ($1, $2, $3, $4, decode($5, 'hex'), $6, $7, clock_timestamp() + $8::double precision * interval '1 millisecond', $9)`,
    values: [
      key.id,
      key.workspaceId,
      key.name,
      key.kind,
      key.hash,
      key.hint,
      key.parentId,
      key.ttlMs,
      key.environmentId ?? null,
    ],
  };
}
