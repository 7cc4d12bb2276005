import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type CloudConfig, DEFAULT_SANDBOX, type Environment } from '@holdfast/contracts';
import { backup, MIGRATIONS_TABLE, restore } from '@holdfast/event-store';
import { type TestDatabase, testDatabase } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import pg from 'pg';
import { z } from 'zod';
import { createEnvironment } from '../catalogue/environment.decider.ts';
import { bootstrap } from './bootstrap.ts';
import { runMigrations } from './run-migrations.ts';

const ROLES = ['session', 'sandbox', 'gateway', 'observer'] as const;
const KEY = `hf_${'k'.repeat(43)}`;
const repository = (path: string): string => fileURLToPath(new URL(`../../../../${path}`, import.meta.url));

let database: TestDatabase;
beforeAll(async () => {
  database = await testDatabase();
  await asRole(null, async (client) => {
    // Roles belong to the whole cluster, which other specs use at the same time.
    for (const role of ROLES)
      await client.query(
        `do $$ begin create role holdfast_${role} login; exception when duplicate_object or unique_violation then null; end $$`,
      );
  });
  await runMigrations(database.url, repository('services/sandbox/migrations'));
  await bootstrap(database.url, KEY);
}, 60_000);
afterAll(async () => database.drop());

async function asRole<T>(role: (typeof ROLES)[number] | null, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const url = new URL(database.url);
  if (role !== null) url.username = `holdfast_${role}`;
  const client = new pg.Client({ connectionString: url.href });
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

const expectRefused = async (role: (typeof ROLES)[number], sql: string): Promise<void> => {
  await expect(asRole(role, (client) => client.query(sql))).rejects.toThrow('permission denied');
};
const expectAllowed = async (role: (typeof ROLES)[number], sql: string): Promise<void> => {
  await expect(asRole(role, (client) => client.query(sql))).resolves.toBeDefined();
};

describe('the roles', () => {
  it('let the gateway read and nothing else', async () => {
    await expectAllowed('gateway', 'select 1 from events, api_keys, sessions');
    await expectRefused('gateway', 'delete from api_keys');
    await expectRefused('gateway', `update streams set version = 0`);
  });

  it('keep the catalogue from the sandbox service', async () => {
    await expectAllowed('sandbox', 'select 1 from sandboxes, events, streams');
    await expectRefused('sandbox', 'select 1 from api_keys');
    await expectRefused('sandbox', 'select 1 from sessions');
  });

  it('let nobody but the owner change the schema', async () => {
    for (const role of ROLES) await expectRefused(role, 'create table public.mine (id integer)');
  });

  it('show the observer times and counts, no contents', async () => {
    await expectRefused('observer', 'select data from events');
    await expectRefused('observer', 'select metadata from events');
    await expectRefused('observer', 'select view from sessions');
    await expectRefused('observer', 'select title from sessions');
    await expectRefused('observer', 'select token_hash from sandboxes');
    await expectRefused('observer', 'select 1 from api_keys');
    await expectRefused('observer', 'delete from relay_checkpoint');
  });
});

describe('an environment from before it had sandbox settings', () => {
  it('is given them', async () => {
    const at = '2026-01-01T00:00:00.000Z';
    const made = createEnvironment('env_old', { name: 'old' }, at);
    const { x_sandbox: _later, ...old } = made.config as CloudConfig;
    await asRole(null, async (client) => {
      await client.query(
        `insert into environments (id, workspace_id, name, resource, created_at) values ($1, 'wrkspc_default', $2, $3, $4)`,
        [made.id, made.name, { ...made, config: old }, at],
      );
      await client.query(`delete from ${MIGRATIONS_TABLE} where name = 'EnvironmentSandboxes1764000103000'`);
    });
    await runMigrations(database.url, repository('services/sandbox/migrations'));
    const { rows } = await asRole(null, (client) =>
      client.query<{ resource: Environment }>('select resource from environments order by id = $1', [made.id]),
    );
    expect(rows.at(-1)).toEqual({ resource: made });
    expect(rows.map(({ resource }) => (resource.config as CloudConfig).x_sandbox)).toEqual(
      rows.map(() => DEFAULT_SANDBOX),
    );
  });
});

describe('the Grafana dashboard', () => {
  const { panels } = z
    .object({
      panels: z.array(
        z.object({ title: z.string(), targets: z.tuple([z.object({ format: z.string(), rawSql: z.string() })]) }),
      ),
    })
    .parse(JSON.parse(readFileSync(repository('k8s/grafana/dashboards/holdfast.json'), 'utf8')));
  /** The macros of Grafana's Postgres data source, as far as they are used. */
  const expand = (sql: string): string =>
    sql
      .replace(/\$__timeGroupAlias\((\w+), \$__interval\)/g, `date_bin('60 s', $1, 'epoch') as "time"`)
      .replace(/\$__timeFilter\((\w+)\)/g, "$1 between now() - interval '1 hour' and now()");

  it.each(panels.map((panel) => [panel.title, panel] as const))('can ask for "%s"', async (_title, panel) => {
    const [{ format, rawSql }] = panel.targets;
    expect(expand(rawSql)).not.toContain('$');
    const { fields } = await asRole('observer', (client) => client.query(expand(rawSql)));
    const names = fields.map(({ name }) => name);
    if (format === 'time_series') expect(names).toEqual(['time', 'metric', 'value']);
    else expect(names.length).toBeGreaterThan(0);
  });

  it('sees what the relay has not passed on', async () => {
    const waiting = panels.find(({ title }) => title === 'Waiting for the relay')?.targets[0].rawSql ?? '';
    const count = (): Promise<unknown> =>
      asRole('observer', async (client) => (await client.query<{ events: string }>(waiting)).rows[0]?.events);
    const { rows } = await asRole(null, (client) =>
      client.query<{ amount: string }>('select count(*) as amount from events'),
    );
    expect(await count()).toBe(rows[0]?.amount);
    expect(Number(await count())).toBeGreaterThan(0);
    await asRole(null, (client) =>
      client.query(
        `insert into relay_checkpoint (name, txid, position) select 'events', txid, position from events order by txid desc, position desc limit 1`,
      ),
    );
    expect(await count()).toBe('0');
  });
});

describe('a backup', () => {
  it('brings every row of every table back, computed columns too, and counts on from there', async () => {
    const addSandbox = `insert into sandboxes (id, workspace_id, session_id, environment_id, status, environment)
      select 'sbx_' || n, 'wrkspc_default', 'sesn_' || n, 'env_1', 'ready', '{}' from (select count(*) as n from sandboxes) t`;
    await asRole(null, async (client) => {
      await client.query(addSandbox);
      await client.query(
        `insert into sessions (id, workspace_id, view, status, version, agent_id, agent_version, environment_id, created_at, updated_at)
         values ('sesn_1', 'wrkspc_default', '{"stopReason": {"type": "requires_action"}}', 'idle', 1, 'agent_1', 1, 'env_1', now(), now())`,
      );
    });
    const dir = mkdtempSync(join(tmpdir(), 'holdfast-backup-'));
    const copy = await testDatabase();
    try {
      await runMigrations(copy.url, repository('services/sandbox/migrations'));
      const saved = await backup(database.url, join(dir, 'backup.gz'));
      const restored = await restore(copy.url, join(dir, 'backup.gz'));
      const filled = Object.entries(saved).filter(([, rows]) => rows > 0);
      expect(restored).toEqual(Object.fromEntries(filled));
      for (const [table] of filled) {
        const rows = async (url: string): Promise<unknown> => {
          const client = new pg.Client({ connectionString: url });
          await client.connect();
          // Transaction ids and the relay's place are the new cluster's own.
          const { rows: found } = await client.query(
            `select to_jsonb(t) - 'txid' as row from ${pg.escapeIdentifier(table)} t order by 1`,
          );
          await client.end();
          return found;
        };
        if (table !== 'relay_checkpoint') expect(await rows(copy.url)).toEqual(await rows(database.url));
      }
      const client = new pg.Client({ connectionString: copy.url });
      await client.connect();
      await client.query(addSandbox);
      const { rows } = await client.query('select serial from sandboxes order by 1');
      await client.end();
      expect(rows).toEqual([{ serial: 1 }, { serial: 2 }]);
    } finally {
      await copy.drop();
      rmSync(dir, { recursive: true });
    }
  });
});
