import type { AgentSnapshot } from '@holdfast/contracts';
import { AppError, newId } from '@holdfast/contracts';
import { createLogPool, EventLog, migrate } from '@holdfast/event-store';
import { type TestDatabase, testDatabase } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type pg from 'pg';
import { decideClientEvent, decideCreate } from './session.decider.ts';
import { LoadedSession, SessionStore } from './session.store.ts';

const WORKSPACE = 'wrkspc_one';
let database: TestDatabase;
let pool: pg.Pool;
let log: EventLog;
beforeAll(async () => {
  database = await testDatabase();
  pool = createLogPool({ connectionString: database.url, applicationName: 'spec' });
  await migrate(pool);
  log = new EventLog({ pool });
}, 90_000);
afterAll(async () => {
  await log.close();
  await pool.end();
  await database.drop();
});

const agent = { id: 'agent_a', version: 1, model: { id: 'demo' }, tools: [] } as unknown as AgentSnapshot;
const context = () => ({ commandId: newId('command'), metadata: {} });
async function created(store: SessionStore): Promise<LoadedSession> {
  const session = store.fresh(WORKSPACE, newId('session'));
  const facts = {
    agent,
    environmentId: 'env_a',
    title: null,
    metadata: {},
    contextKey: null,
    resources: [],
    selfHosted: false,
  };
  await session.commit(context(), (state, ids) => ({ drafts: decideCreate(state, facts, ids) }));
  return session;
}
const say = (session: LoadedSession, text: string, commit = context()) =>
  session.commit(commit, (state, ids) => {
    const answer = decideClientEvent(state, { type: 'user.message', content: [{ type: 'text', text }] }, ids);
    return 'stored' in answer ? { drafts: [answer.stored] } : null;
  });

describe('a session in memory', () => {
  it('decides again when another process was first, however often (L1)', async () => {
    const here = await created(new SessionStore(log));
    const there = await new SessionStore(log).open(here.id);
    await Promise.all([here, there, here, there].map((session, n) => say(session, `m${n}`)));
    await here.refresh();
    expect(here.state.queue).toHaveLength(4);
    expect(here.state.version).toBe(5);
  });

  it('folds a commit once that was found to have happened after all (L2)', async () => {
    let lost = 0;
    // The append is stored, its answer is lost, and the next try is told that somebody was first.
    const unsure = new Proxy(log, {
      get: (target, name) => {
        if (name !== 'append') return (Reflect.get(target, name) as (...all: unknown[]) => unknown).bind(target);
        return async (...request: Parameters<EventLog['append']>) => {
          const result = await target.append(...request);
          if (lost++ > 0) return result;
          throw new AppError('conflict', 'log.version-conflict', 'Somebody was first.');
        };
      },
    });
    const { id } = await created(new SessionStore(log));
    const session = new LoadedSession(id, unsure);
    await session.opened();
    const events = await say(session, 'once');
    expect(lost).toBe(2);
    expect(events.map(({ version }) => version)).toEqual([2]);
    expect(session.state).toMatchObject({ version: 2, queue: [{ id: events[0]?.id }] });
    await say(session, 'and on');
    expect(session.state.queue).toHaveLength(2);
    expect(session.state.version).toBe(3);
  });
});

describe('the sessions kept in memory', () => {
  it('are bounded in number and in size; what is at work stays, what was dropped is read again', async () => {
    const store = new SessionStore(log, { sessions: 4, chars: 1_000_000 });
    const first = await created(store);
    const atWork = await created(store);
    atWork.onChange(() => undefined);
    for (let n = 0; n < 10; n++) await created(store);
    expect(store.size).toBeLessThanOrEqual(5);
    expect(await store.open(atWork.id)).toBe(atWork);
    const again = await store.open(first.id);
    expect(again).not.toBe(first);
    expect(again.state.version).toBe(1);

    const small = new SessionStore(log, { sessions: 1_000, chars: 10_000 });
    const large: LoadedSession[] = [];
    for (let n = 0; n < 6; n++) {
      const session = await created(small);
      const [message] = await say(session, 'x'.repeat(4_000));
      await session.commit(context(), (_state, ids) => ({
        drafts: [
          {
            id: ids(),
            type: 'session.message_processed',
            data: {
              event_id: message?.id ?? '',
              message: { type: 'user.message', content: [{ type: 'text', text: 'x'.repeat(4_000) }] },
            },
          },
        ],
      }));
      large.push(session);
    }
    await small.open(large[5]?.id ?? '');
    expect(small.size).toBeLessThanOrEqual(3);
  });

  it('does not keep what does not exist or could not be read', async () => {
    const store = new SessionStore(log);
    await expect(store.openIn(WORKSPACE, newId('session'))).rejects.toMatchObject({ code: 'session.not-found' });
    const away = new SessionStore({ readStream: () => Promise.reject(new Error('away')) } as unknown as EventLog);
    const both = await Promise.allSettled([away.open('sesn_a'), away.open('sesn_a')]);
    expect(both.map(({ status }) => status)).toEqual(['rejected', 'rejected']);
    expect([store.size, away.size]).toEqual([0, 0]);
  });

  it('another workspace’s session does not exist, and is not dropped by asking for it', async () => {
    const store = new SessionStore(log);
    const session = await created(store);
    await expect(store.openIn('wrkspc_two', session.id)).rejects.toMatchObject({ code: 'session.not-found' });
    expect(await store.open(session.id)).toBe(session);
  });
});
