import type { Bus } from '@holdfast/bus';
import {
  AppError,
  type EnsureSandboxBody,
  type EnsureSandboxReply,
  type EnsureSandboxUpdate,
  type ExecBody,
  type ExecReply,
  sandboxLinkSubject,
  type ToolOutcome,
} from '@holdfast/contracts';
import { type NatsServer, startNats } from '@holdfast/testing';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { type Dispatch, SandboxClient } from './sandbox-client.ts';

let nats: NatsServer & { dir: string };
let session: Bus;
let sandbox: Bus;
const registrations: { stop: () => Promise<void> }[] = [];
beforeAll(async () => {
  nats = await startNats();
  [session, sandbox] = await Promise.all([nats.connect('session'), nats.connect('sandbox')]);
}, 120_000);
afterEach(async () => {
  for (const registration of registrations.splice(0)) await registration.stop();
});
afterAll(async () => {
  await Promise.all([session.close(), sandbox.close()]);
  await nats.stop();
});

const done: ToolOutcome = { outcome: 'completed', isError: false, text: 'done', fullOutput: null };
const diskFull = new AppError('exhausted', 'sandbox.disk-full', 'The disk is full.');
const linkLost = new AppError('unavailable', 'sandbox.link-lost', 'The link was lost.');
let attached: string[];
let waited: string[];

/** A sandbox service that says these things, one after the other; the last of them again and again. */
async function serve(
  ensures: (EnsureSandboxReply | AppError)[],
  execs: (ToolOutcome | AppError)[] = [],
): Promise<{ sent: number; under: (string | undefined)[] }> {
  const count = { sent: 0, under: [] as (string | undefined)[] };
  attached = [];
  waited = [];
  const next = <T>(from: (T | AppError)[]): T => {
    const one = from.length > 1 ? from.shift() : from[0];
    if (one === undefined || one instanceof AppError) throw one ?? linkLost;
    return one;
  };
  registrations.push(
    sandbox.replyMany<EnsureSandboxBody, EnsureSandboxUpdate>(
      'cmd.sandbox.*.ensure',
      { queue: 'sandbox' },
      (_body, _context, send) => {
        send({ kind: 'waiting', reason: { code: 'unschedulable', message: 'no node has room' } });
        send({ kind: 'waiting', reason: null });
        send({ kind: 'ready', ...next(ensures) });
        return Promise.resolve();
      },
    ),
    sandbox.replyMany<ExecBody, ExecReply>(sandboxLinkSubject('sbx_1', 'exec'), {}, (body, _context, send) => {
      count.sent += 1;
      count.under.push(body.journalId);
      send({ kind: 'done', result: next(execs) });
      return Promise.resolve();
    }),
  );
  await sandbox.flush();
  return count;
}
const exec = (changes: Partial<Dispatch> = {}) =>
  new SandboxClient(session).exec(
    {
      ensure: {
        workspaceId: 'wrkspc_default',
        sessionId: 'sesn_1',
        environmentId: 'env_1',
        environment: {
          type: 'cloud',
          networking: { type: 'unrestricted' },
          packages: { apt: [], cargo: [], gem: [], go: [], npm: [], pip: [] },
        },
        contextKey: null,
        generation: 1,
      },
      known: null,
      sentUnder: null,
      waitMs: 1_000,
      onWaiting: ({ code }) => waited.push(code),
      onRestored: () => Promise.resolve(),
      onAttach: ({ journalId }) => {
        attached.push(journalId);
        return Promise.resolve();
      },
      ...changes,
    },
    { sessionId: 'sesn_1', callId: 'c1', generation: 1, tool: 'bash', input: {}, timeoutMs: 1_000 },
    new AbortController().signal,
  );
const first: EnsureSandboxReply = { sandboxId: 'sbx_1', journalId: 'j1' };

describe('a call on its way to a sandbox', () => {
  it('is sent again under its id when the link broke, and attached before it is sent', async () => {
    const count = await serve([first], [linkLost, done]);
    expect(await exec()).toEqual(done);
    expect([count.sent, attached]).toEqual([2, ['j1', 'j1']]);
  });

  it('that nobody heard was not sent: it runs under another journal, without delay', async () => {
    const notLinked = new AppError('unavailable', 'sandbox.not-linked', 'No link.');
    const count = await serve([{ ...first, journalId: 'j2' }], [notLinked, done]);
    const askedAtMs = Date.now();
    expect(await exec({ known: first })).toEqual(done);
    expect(Date.now() - askedAtMs).toBeLessThan(200);
    expect([count.under, attached]).toEqual([
      ['j1', 'j2'],
      ['j1', 'j2'],
    ]);
  });

  it('that was never sent says why it could not be', async () => {
    const count = await serve([diskFull]);
    expect(await exec()).toEqual({ unavailable: 'The disk is full.' });
    expect([count.sent, attached, waited]).toEqual([0, [], ['unschedulable']]);
  });

  it('that may have run is unknown, whatever keeps it from being asked about again', async () => {
    await serve([first, diskFull], [linkLost]);
    expect(await exec()).toMatchObject({ outcome: 'unknown', isError: true });
  });

  it('that was sent under a journal which is gone is unknown, and not sent again', async () => {
    const count = await serve([first, { ...first, journalId: 'j2' }], [linkLost]);
    expect(await exec()).toMatchObject({ outcome: 'unknown' });
    expect(count.sent).toBe(1);
  });

  it('gives up on a sandbox that does not come back in time, and says what it waited for', async () => {
    await serve([first, linkLost], [linkLost]);
    expect(await exec()).toMatchObject({ outcome: 'unknown' });
    expect(await exec({ known: null })).toEqual({ unavailable: 'No sandbox could be had: no node has room' });
  });
});
