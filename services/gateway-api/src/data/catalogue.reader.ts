import {
  type Agent,
  type ApiKeyResource,
  AppError,
  type Environment,
  type EnvironmentKeyResource,
  type FileResource,
  LIMITS,
  type Page,
  SANDBOX_HINTS,
  SANDBOX_STATUSES,
  type Sandbox,
  type SandboxPool,
  SESSION_STATUSES,
  type Session,
  type SessionView,
  type SessionWorker,
  sessionResource,
  type Work,
  type WorkRow,
  type WorkStats,
  workResourceOf,
} from '@holdfast/contracts';
import type pg from 'pg';
import { decodeRowPlace, encodeCursor, type ListName, type Order, type RowPlace } from '../http/cursor.ts';
import type { Query, TimeRange } from '../http/query.ts';

const DEFAULT_PAGE = 20;
const MICROS = `(extract(epoch from created_at) * 1000000)::bigint`;
const iso = (column: string): string => `to_char(${column} at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`;

/** A sandbox as JSON; what is to be done about its reason is no part of the row. */
const SANDBOX = `jsonb_build_object('id', id, 'type', 'sandbox', 'session_id', session_id, 'environment_id', environment_id,
  'context_key', context_key, 'provider', provider, 'isolation', isolation, 'status', status, 'reason', reason,
  'incarnation', incarnation, 'launch', launch, 'namespace', namespace, 'pod', pod, 'node', node,
  'created_at', ${iso('created_at')}, 'ready_at', ${iso('ready_at')}, 'updated_at', ${iso('updated_at')})`;
type SandboxItem = Omit<Sandbox, 'reason'> & { readonly reason: Omit<NonNullable<Sandbox['reason']>, 'hint'> | null };

const WORK = `jsonb_build_object('id', id, 'type', 'work', 'environment_id', environment_id,
  'data', jsonb_build_object('type', 'session', 'id', session_id), 'state', state, 'secret', null, 'metadata', metadata,
  ${['created_at', 'acknowledged_at', 'started_at', 'latest_heartbeat_at', 'stop_requested_at', 'stopped_at']
    .map((column) => `'${column}', ${iso(column)}`)
    .join(', ')})`;
/** A worker that asked for work so recently is taken to be there, in seconds. */
const POLLING_SECONDS = 30;

interface ListQuery {
  readonly list: ListName;
  readonly table: string;
  /** The resource as JSON. */
  readonly column: string;
  readonly where: readonly string[];
  readonly values: readonly unknown[];
  readonly order: Order;
  readonly limit: number;
  readonly page: string | undefined;
}

/** Reads of the catalogue within one workspace. What is elsewhere does not exist. */
export class CatalogueReader {
  readonly #pool: pg.Pool;

  constructor(pool: pg.Pool) {
    this.#pool = pool;
  }

  async agent(workspaceId: string, id: string, version?: number): Promise<Agent> {
    const { rows } = await this.#pool.query<{ resource: Agent }>(
      version === undefined
        ? 'select resource from agents where id = $1 and workspace_id = $2'
        : 'select resource from agent_versions where agent_id = $1 and workspace_id = $2 and version = $3',
      version === undefined ? [id, workspaceId] : [id, workspaceId, version],
    );
    return found(rows[0]?.resource, 'agent', id);
  }

  async environment(workspaceId: string, id: string): Promise<Environment> {
    const { rows } = await this.#pool.query<{ resource: Environment }>(
      'select resource from environments where id = $1 and workspace_id = $2',
      [id, workspaceId],
    );
    return found(rows[0]?.resource, 'environment', id);
  }

  async sessionView(workspaceId: string, id: string): Promise<SessionView> {
    const { rows } = await this.#pool.query<{ view: SessionView }>({
      name: 'session-view',
      text: 'select view from sessions where id = $1 and workspace_id = $2',
      values: [id, workspaceId],
    });
    return found(rows[0]?.view, 'session', id);
  }

  /** Refuses what no event can be sent to. @throws AppError `session.not-found`, `session.archived` */
  async openSession(workspaceId: string, id: string): Promise<void> {
    const view = await this.sessionView(workspaceId, id);
    if (view.archivedAt !== null)
      throw new AppError('invalid', 'session.archived', 'The session is archived and accepts nothing more.');
  }

  async session(workspaceId: string, id: string): Promise<Session> {
    return sessionResource(await this.sessionView(workspaceId, id), new Date().toISOString());
  }

  /** Id of the environment that quick sessions run in. */
  async environmentNamed(workspaceId: string, name: string): Promise<string> {
    const { rows } = await this.#pool.query<{ id: string }>(
      'select id from environments where workspace_id = $1 and name = $2 and archived_at is null',
      [workspaceId, name],
    );
    return found(rows[0]?.id, 'environment', name);
  }

  agents(workspaceId: string, query: Query): Promise<Page<Agent>> {
    const { where, values } = filters(workspaceId, query.range('created_at'), query.flag('include_archived'));
    return this.#list<Agent>({
      list: 'agents',
      table: 'agents',
      column: 'resource',
      where,
      values,
      order: 'desc',
      limit: query.limit(DEFAULT_PAGE),
      page: query.one('page'),
    });
  }

  async agentVersions(workspaceId: string, agentId: string, query: Query): Promise<Page<Agent>> {
    await this.agent(workspaceId, agentId);
    return this.#list<Agent>({
      list: 'agent_versions',
      table: "(select *, agent_id as parent, lpad(version::text, 10, '0') as id from agent_versions) as versions",
      column: 'resource',
      where: ['workspace_id = $1', 'parent = $2'],
      values: [workspaceId, agentId],
      order: 'desc',
      limit: query.limit(DEFAULT_PAGE),
      page: query.one('page'),
    });
  }

  environments(workspaceId: string, query: Query): Promise<Page<Environment>> {
    const { where, values } = filters(workspaceId, {}, query.flag('include_archived'));
    return this.#list<Environment>({
      list: 'environments',
      table: 'environments',
      column: 'resource',
      where,
      values,
      order: 'desc',
      limit: query.limit(DEFAULT_PAGE),
      page: query.one('page'),
    });
  }

  /** A file's metadata, and the digest of its bytes. */
  async file(workspaceId: string, id: string): Promise<{ resource: FileResource; digest: string }> {
    const { rows } = await this.#pool.query<{ resource: FileResource; digest: string }>(
      'select resource, digest from files where id = $1 and workspace_id = $2',
      [id, workspaceId],
    );
    return found(rows[0], 'file', id);
  }

  async files(workspaceId: string, query: Query): Promise<Page<FileResource>> {
    const where = ['workspace_id = $1'];
    const values: unknown[] = [workspaceId];
    const scope = query.one('scope_id');
    if (scope !== undefined) where.push(`scope_id = $${values.push(scope)}`);
    const ids = [...new Set(query.many('ids'))];
    if (ids.length > 0) {
      query.refuseBeside('ids', 'page', 'limit');
      where.push(`id = any ($${values.push(ids)})`);
    }
    return this.#list<FileResource>({
      list: 'files',
      table: 'files',
      column: 'resource',
      where,
      values,
      order: 'desc',
      limit: ids.length > 0 ? LIMITS.fileIds : query.limit(DEFAULT_PAGE),
      page: query.one('page'),
    });
  }

  apiKeys(workspaceId: string, query: Query): Promise<Page<ApiKeyResource>> {
    return this.#list<ApiKeyResource>({
      list: 'api_keys',
      table: 'api_keys',
      column: `jsonb_build_object('id', id, 'type', 'api_key', 'name', name, 'hint', hint, 'created_at', ${iso('created_at')},
        'expires_at', ${iso('expires_at')}, 'revoked_at', ${iso('revoked_at')}, 'last_used_at', null)`,
      where: ['workspace_id = $1', `kind = 'api_key'`],
      values: [workspaceId],
      order: 'desc',
      limit: query.limit(DEFAULT_PAGE),
      page: query.one('page'),
    });
  }

  async sessions(workspaceId: string, query: Query): Promise<Page<Session> & { prev_page: string | null }> {
    query.refuse('deployment_id', 'memory_store_id');
    const statuses = query.choices('statuses', SESSION_STATUSES);
    // Asking for terminated sessions is asking for archived ones.
    const { where, values } = filters(
      workspaceId,
      query.range('created_at'),
      query.flag('include_archived') || statuses.includes('terminated'),
    );
    const add = (condition: (n: number) => string, value: unknown): void => {
      values.push(value);
      where.push(condition(values.length));
    };
    const agentId = query.one('agent_id');
    const agentVersion = query.integer('agent_version', { min: 1, max: 2 ** 31 - 1 });
    if (agentId !== undefined) add((n) => `agent_id = $${n}`, agentId);
    if (agentVersion !== undefined) add((n) => `agent_version = $${n}`, agentVersion);
    if (statuses.length > 0) add((n) => `status = any ($${n})`, statuses);
    if (query.flag('x_needs_action')) where.push('needs_action');
    const family = query.one('x_family');
    if (family !== undefined) {
      add((n) => {
        const root = `(select coalesce(fork_root, id) from sessions where id = $${n} and workspace_id = $1)`;
        return `(id = ${root} or fork_root = ${root})`;
      }, family);
    }
    const text = query.one('x_text');
    if (text !== undefined) add((n) => `position(lower($${n}) in lower(concat_ws(' ', title, id))) > 0`, text);
    const page = await this.#list<SessionView>({
      list: 'sessions',
      table: 'sessions',
      column: 'view',
      where,
      values,
      order: query.choice('order', ['asc', 'desc']) ?? 'desc',
      limit: query.limit(DEFAULT_PAGE),
      page: query.one('page'),
    });
    const now = new Date().toISOString();
    return { ...page, data: page.data.map((view) => sessionResource(view, now)) };
  }

  async sandbox(workspaceId: string, id: string): Promise<Sandbox> {
    const { rows } = await this.#pool.query<{ item: SandboxItem }>(
      `select ${SANDBOX} as item from sandboxes where id = $1 and workspace_id = $2`,
      [id, workspaceId],
    );
    return withHint(found(rows[0]?.item, 'sandbox', id));
  }

  async sandboxes(workspaceId: string, query: Query): Promise<Page<Sandbox>> {
    const where = ['workspace_id = $1'];
    const values: unknown[] = [workspaceId];
    for (const column of ['session_id', 'environment_id']) {
      const id = query.one(column);
      if (id !== undefined) where.push(`${column} = $${values.push(id)}`);
    }
    const statuses = query.choices('status', SANDBOX_STATUSES);
    if (statuses.length > 0) where.push(`status = any ($${values.push(statuses)})`);
    if (!statuses.includes('destroyed')) where.push(`status <> 'destroyed'`);
    const page = await this.#list<SandboxItem>({
      list: 'sandboxes',
      table: 'sandboxes',
      column: SANDBOX,
      where,
      values,
      order: 'desc',
      limit: query.limit(DEFAULT_PAGE),
      page: query.one('page'),
    });
    return { ...page, data: page.data.map(withHint) };
  }

  sandboxPools(workspaceId: string, query: Query): Promise<Page<SandboxPool>> {
    return this.#list<SandboxPool>({
      list: 'sandbox_pools',
      table: `(select e.id, e.workspace_id, e.name, e.created_at, p.ready, p.reason, p.observed_at,
          case when e.archived_at is null then coalesce((e.resource->'config'->'x_sandbox'->>'pool_size')::integer, 0) else 0 end as size
        from environments e left join sandbox_pools p on p.environment_id = e.id) as pools`,
      column: `jsonb_build_object('type', 'sandbox_pool', 'environment_id', id, 'environment_name', name, 'size', size,
        'ready', coalesce(ready, 0), 'reason', reason, 'observed_at', ${iso('observed_at')},
        'claims_per_minute', (select count(*) from sandboxes s
          where s.environment_id = pools.id and s.claimed_at > now() - interval '1 minute'),
        'waiting', (select count(*) from sandboxes s where s.environment_id = pools.id and s.status = 'starting'))`,
      where: ['workspace_id = $1', '(size > 0 or ready > 0)'],
      values: [workspaceId],
      order: 'desc',
      limit: query.limit(DEFAULT_PAGE),
      page: query.one('page'),
    });
  }

  async environmentKeys(
    workspaceId: string,
    environmentId: string,
    query: Query,
  ): Promise<Page<EnvironmentKeyResource>> {
    await this.environment(workspaceId, environmentId);
    return this.#list<EnvironmentKeyResource>({
      list: 'environment_keys',
      table: 'api_keys',
      column: `jsonb_build_object('id', id, 'type', 'environment_key', 'environment_id', environment_id, 'name', name, 'hint', hint,
        'created_at', ${iso('created_at')}, 'expires_at', ${iso('expires_at')}, 'revoked_at', ${iso('revoked_at')}, 'last_used_at', null)`,
      where: ['workspace_id = $1', 'environment_id = $2', `kind = 'environment_key'`],
      values: [workspaceId, environmentId],
      order: 'desc',
      limit: query.limit(DEFAULT_PAGE),
      page: query.one('page'),
    });
  }

  async work(workspaceId: string, environmentId: string, id: string): Promise<Work> {
    const { rows } = await this.#pool.query<WorkRow>(
      'select * from work_items where id = $1 and environment_id = $2 and workspace_id = $3',
      [id, environmentId, workspaceId],
    );
    return workResourceOf(found(rows[0], 'work', id));
  }

  async works(workspaceId: string, environmentId: string, query: Query): Promise<Page<Work>> {
    await this.environment(workspaceId, environmentId);
    return this.#list<Work>({
      list: 'work',
      table: 'work_items',
      column: WORK,
      where: ['workspace_id = $1', 'environment_id = $2'],
      values: [workspaceId, environmentId],
      order: 'desc',
      limit: query.limit(DEFAULT_PAGE),
      page: query.one('page'),
    });
  }

  async workStats(workspaceId: string, environmentId: string): Promise<WorkStats> {
    await this.environment(workspaceId, environmentId);
    const { rows } = await this.#pool.query<Omit<WorkStats, 'type'>>(
      `select count(*) filter (where w.id is null)::integer as depth, count(w.id)::integer as pending,
         min(s.view->'worker'->>'since') as oldest_queued_at,
         (select count(*)::integer from work_pollers p
           where p.environment_id = $1 and p.polled_at > clock_timestamp() - $3 * interval '1 second') as workers_polling
       from sessions s left join work_items w on w.session_id = s.id and w.state <> 'stopped'
       where s.environment_id = $1 and s.workspace_id = $2 and s.needs_worker and (w.id is null or w.state = 'queued')`,
      [environmentId, workspaceId, POLLING_SECONDS],
    );
    const { depth = 0, pending = 0, oldest_queued_at = null, workers_polling = 0 } = rows[0] ?? {};
    return { type: 'work_queue_stats', depth, pending, oldest_queued_at, workers_polling };
  }

  /** @throws AppError `session.not-self-hosted` */
  async sessionWorker(workspaceId: string, sessionId: string): Promise<SessionWorker> {
    const { worker, environmentId } = await this.sessionView(workspaceId, sessionId);
    if (worker === undefined)
      throw new AppError(
        'invalid',
        'session.not-self-hosted',
        'The platform runs this session’s tools; it has no worker.',
      );
    const [{ rows }, { workers_polling }] = await Promise.all([
      this.#pool.query<WorkRow & { readonly worker_id: string | null }>(
        `select * from work_items where session_id = $1 and state <> 'stopped'`,
        [sessionId],
      ),
      this.workStats(workspaceId, environmentId),
    ]);
    const row = rows[0];
    return {
      type: 'session_worker',
      environment_id: environmentId,
      waiting_calls: worker.calls,
      work: row === undefined ? null : workResourceOf(row),
      worker_id: row?.worker_id ?? null,
      workers_polling,
    };
  }

  /** Rows by (created_at, id), one more than asked for to know whether the list goes on. */
  async #list<T>(asked: ListQuery): Promise<Page<T> & { prev_page: string | null }> {
    const place = asked.page === undefined ? null : decodeRowPlace(asked.page, asked.list, asked.order);
    const backwards = place?.d === 'prev';
    const values = [...asked.values];
    const where = [...asked.where];
    const ascending = (asked.order === 'asc') !== backwards;
    if (place !== null) {
      values.push(place.t, place.i);
      where.push(`(${MICROS}, id) ${ascending ? '>' : '<'} ($${values.length - 1}::bigint, $${values.length}::text)`);
    }
    values.push(asked.limit + 1);
    const direction = ascending ? 'asc' : 'desc';
    const { rows } = await this.#pool.query<{ item: T; t: string; i: string }>(
      `select ${asked.column} as item, ${MICROS} as t, id as i from ${asked.table}
       where ${where.join(' and ')} order by created_at ${direction}, id ${direction} limit $${values.length}`,
      values,
    );
    const more = rows.length > asked.limit;
    const shown = rows.slice(0, asked.limit);
    if (backwards) shown.reverse();
    const token = (row: { t: string; i: string } | undefined, d: RowPlace['d']): string | null =>
      row === undefined ? null : encodeCursor(asked.list, asked.order, { t: Number(row.t), i: row.i, d });
    const first = shown[0];
    const last = shown[shown.length - 1];
    return {
      data: shown.map((row) => row.item),
      next_page: backwards || more ? token(last, 'next') : null,
      prev_page: place !== null && (!backwards || more) ? token(first, 'prev') : null,
    };
  }
}

function filters(
  workspaceId: string,
  range: TimeRange,
  includeArchived: boolean,
): { where: string[]; values: unknown[] } {
  const values: unknown[] = [workspaceId];
  const where = ['workspace_id = $1'];
  const operators = { gt: '>', gte: '>=', lt: '<', lte: '<=' } as const;
  for (const [bound, at] of Object.entries(range)) {
    values.push(at);
    where.push(`created_at ${operators[bound as keyof TimeRange]} $${values.length}::timestamptz`);
  }
  if (!includeArchived) where.push('archived_at is null');
  return { where, values };
}

function withHint({ reason, ...sandbox }: SandboxItem): Sandbox {
  if (reason === null) return { ...sandbox, reason };
  return { ...sandbox, reason: { ...reason, hint: reason.code === null ? null : SANDBOX_HINTS[reason.code] } };
}

function found<T>(value: T | undefined, what: string, id: string): T {
  if (value === undefined)
    throw new AppError('not-found', `${what}.not-found`, `There is no ${what} ${id.slice(0, 100)}.`);
  return value;
}
