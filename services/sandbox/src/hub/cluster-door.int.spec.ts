import { existsSync, readFileSync } from 'node:fs';
import { connect as connectTcp, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect as connectTls } from 'node:tls';
import type { ExecBody } from '@holdfast/contracts';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { WebSocket } from 'ws';
import { certificateAuthority } from '../test/authority.ts';
import { Cluster, podOf, until } from '../test/cluster.ts';
import { hello, newKeys, spki } from '../test/dialler.ts';
import { hubCertificate } from './certificate.ts';
import type { RunnerLink } from './runner-link.ts';

let cluster: Cluster;
beforeEach(async () => {
  cluster = new Cluster();
  await cluster.open();
});
afterEach(() => cluster.close());

let calls = 0;
const bash = (command: string, changes: Partial<ExecBody> = {}): ExecBody => ({
  ...{ sessionId: 's', callId: `link-${process.pid}-${++calls}`, generation: 1, tool: 'bash', timeoutMs: 20_000 },
  input: { command },
  ...changes,
});
const welcome = (link: RunnerLink): void =>
  link.welcome({ env: { COLOUR: 'teal' }, keep: () => Promise.resolve(null) });
const inPod = (uid: string, changes: Parameters<typeof hello>[0] = {}, keys?: Parameters<typeof hello>[1]) =>
  hello({ pod: uid, token: `token-of-${uid}`, ...changes }, keys);
const reasons = (): string[] => [...new Set(cluster.refusals.map(({ reason }) => reason))];

describe('a runner in a pod', () => {
  it('links before it is claimed, and runs calls from the welcome on', async () => {
    const runner = cluster.start('p1');
    const link = await cluster.linked('p1');
    expect(cluster.links[0]?.pod).toEqual(podOf('p1'));
    expect([link.pod, link.busy, cluster.reviewed]).toEqual(['p1', false, 1]);
    await sleep(1_000);
    expect([link.open, cluster.links.length]).toEqual([true, 1]);
    welcome(link);
    await link.claim(1);
    const { text } = await link.exec(bash('echo $COLOUR; env; cat /proc/self/cgroup > seen'));
    expect(text).toMatch(/^teal\n/);
    expect(text.match(/HOLDFAST_\w+/g)).toEqual(['HOLDFAST_CALL']);
    expect(text).not.toContain(runner.tokenFile);
    expect(await link.measure()).toBeGreaterThan(4_096);
    expect(cluster.refusals).toEqual([]);
  });

  it('shows its key and no token at the door of another replica, and its call goes on', async () => {
    await cluster.open();
    const runner = cluster.start('p1');
    const first = await cluster.linked('p1');
    welcome(first);
    const call = bash('echo began >> effect; sleep 2; echo over');
    const lost = first.exec(call);
    await until('the effect', () => existsSync(join(runner.workspace, 'effect')));
    await cluster.doors[cluster.links[0]?.door ?? 0]?.close();
    await expect(lost).rejects.toMatchObject({ code: 'sandbox.link-lost' });
    const second = await cluster.linked('p1');
    expect(cluster.links.map(({ door }) => door).toSorted((a, b) => a - b)).toEqual([0, 1]);
    expect([second.journalId, cluster.reviewed]).toEqual([first.journalId, 1]);
    welcome(second);
    const outcomes = await Promise.all([second.exec(call), second.exec(call)]);
    for (const outcome of outcomes) expect(outcome).toMatchObject({ outcome: 'completed', text: 'over\n' });
    expect(await second.exec(call)).toMatchObject({ text: 'over\n' });
    expect(readFileSync(join(runner.workspace, 'effect'), 'utf8')).toBe('began\n');
    expect(cluster.refusals).toEqual([]);
  });

  it('dials until it is let in, with the token that it has by then', async () => {
    cluster.apiServerIsAway = true;
    cluster.tokens.set('old', { refused: 'the token has expired' });
    const runner = cluster.start('p1', {}, 'old');
    await until('three tries', () => cluster.reviewed > 2);
    expect([cluster.links, cluster.refusals]).toEqual([[], []]);
    cluster.apiServerIsAway = false;
    await until('a refusal', () => cluster.refusals.length > 0);
    expect(cluster.refusals[0]).toEqual({ reason: 'the token has expired', pod: null, remoteAddress: '127.0.0.1' });
    cluster.tokens.set('new', podOf('p1'));
    runner.token = 'new';
    await cluster.linked('p1');
  });

  it('is let in again where its key was forgotten', async () => {
    cluster.start('p1');
    const first = await cluster.linked('p1');
    cluster.keys.clear();
    first.close();
    await until('another link', () => cluster.links.length === 2);
    expect(cluster.reviewed).toBe(2);
  });

  it('trusts this hub and no other', async () => {
    const other = await hubCertificate('another secret');
    const runner = cluster.start('p1', { HOLDFAST_HUB_CA: other.cert });
    await until('a complaint', () => runner.log !== '');
    await sleep(500);
    expect(runner.log).toMatch(/^\S+ hub: self-signed certificate[^\n]*\n$/);
    expect([cluster.links, cluster.reviewed]).toEqual([[], 0]);
  });

  it('knows a hub whose certificate an authority signed by that certificate, and nobody else whom it signed', async () => {
    const authority = await certificateAuthority();
    const [mine, other] = [await authority.sign('hub'), await authority.sign('other')];
    for (const chain of ['', authority.cert]) {
      const hub = new Cluster();
      const impostor = new Cluster();
      try {
        await hub.open({ ...mine, cert: `${mine.cert}\n${chain}` });
        await impostor.open({ ...other, cert: `${other.cert}\n${chain}` });
        hub.start('p1');
        await hub.linked('p1');
        const deceived = impostor.start('p2', { HOLDFAST_HUB_CA: `${mine.cert}\n${chain}` });
        await until('a complaint', () => deceived.log !== '');
        expect([impostor.links, impostor.reviewed]).toEqual([[], 0]);
      } finally {
        await hub.close();
        await impostor.close();
      }
    }
  });

  it('that hangs has lost its link within 12 s, and dials again when it goes on', async () => {
    const runner = cluster.start('p1');
    const link = await cluster.linked('p1');
    welcome(link);
    const began = Date.now();
    runner.child.kill('SIGSTOP');
    await expect(link.exec(bash('echo late'))).rejects.toMatchObject({ code: 'sandbox.link-lost' });
    expect(Date.now() - began).toBeLessThan(13_000);
    expect(link.open).toBe(false);
    runner.child.kill('SIGCONT');
    await cluster.linked('p1');
    expect([cluster.links.length, cluster.reviewed, cluster.refusals]).toEqual([2, 1, []]);
  }, 30_000);

  it('kills what runs on SIGTERM, tells how that ended, and leaves within 2 s', async () => {
    const runner = cluster.start('p1');
    const link = await cluster.linked('p1');
    welcome(link);
    const outcome = link.exec(bash('trap "" TERM; echo begun; (setsid sleep 30 &) ; sleep 30; echo never'));
    await sleep(300);
    const began = Date.now();
    runner.child.kill('SIGTERM');
    expect(await outcome).toMatchObject({
      outcome: 'cancelled',
      isError: true,
      text: 'The sandbox is shutting down.\nbegun\n\n[killed by SIGKILL]',
    });
    expect(await runner.exited).toBe(0);
    expect(Date.now() - began).toBeLessThan(2_000);
    expect([link.open, cluster.refusals]).toEqual([false, []]);
  });

  it('lets end on SIGTERM what ends by itself in a moment, and begins nothing more: that was not sent', async () => {
    const runner = cluster.start('p1');
    const link = await cluster.linked('p1');
    welcome(link);
    const short = link.exec(bash('echo begun > short; sleep 0.3; echo over'));
    const long = link.exec(bash('echo begun > long; sleep 30'));
    for (const file of ['short', 'long']) await until(file, () => existsSync(join(runner.workspace, file)));
    runner.child.kill('SIGTERM');
    await sleep(50);
    const late = link.exec(bash('echo begun > late'));
    await expect(late).rejects.toMatchObject({ code: 'sandbox.not-linked' });
    expect(await short).toMatchObject({ outcome: 'completed', text: 'over\n' });
    expect(await long).toMatchObject({ outcome: 'cancelled' });
    expect(await runner.exited).toBe(0);
    expect(existsSync(join(runner.workspace, 'late'))).toBe(false);
  });

  it('leaves on SIGTERM also where there is no hub, or one that does not answer', async () => {
    const nowhere = cluster.start('p1', { HOLDFAST_HUB_URL: 'wss://127.0.0.1:1' });
    await until('a complaint', () => nowhere.log.includes('ECONNREFUSED'));
    cluster.apiServerIsAway = true;
    const unheard = cluster.start('p2');
    await until('a try', () => cluster.reviewed > 0);
    for (const runner of [nowhere, unheard]) {
      const began = Date.now();
      runner.child.kill('SIGTERM');
      expect(await runner.exited).toBe(0);
      expect(Date.now() - began).toBeLessThan(2_000);
    }
  });
});

describe('the door', () => {
  it('lets one key in for each pod: a second is refused and told (X5)', async () => {
    cluster.start('p1');
    const link = await cluster.linked('p1');
    const bound = cluster.keys.get('p1') ?? '';
    const remoteAddress = '127.0.0.1';
    for (const [answer, pod] of [
      [inPod('p1'), 'p1'],
      [hello({ token: 'token-of-p1' }), 'p1'],
      [inPod('p1', { token: null }), null],
      [inPod('p1', { channel: 'egress' }), null],
    ] as const) {
      await cluster.dial(answer).closed;
      expect(cluster.refusals.pop()).toEqual({ reason: 'another key is bound to this pod', pod, remoteAddress });
    }
    // Who knows the key and does not have it cannot sign.
    await cluster.dial(inPod('p1', { publicKey: bound })).closed;
    expect(cluster.refusals.pop()).toEqual({ reason: 'its signature is wrong', pod: null, remoteAddress });
    expect([link.open, cluster.links.length, cluster.keys.get('p1')]).toEqual([true, 1, bound]);
  });

  it('refuses whoever proves nothing, and says nothing of their token', async () => {
    cluster.tokens.set('elsewhere', { refused: 'the token is for another audience' });
    cluster.tokens.set('expired', { refused: 'the token has expired' });
    cluster.tokens.set('token-of-p2', podOf('p2'));
    const other = newKeys();
    for (const [answer, reason, pod] of [
      [inPod('p1', { token: 'elsewhere' }), 'the token is for another audience', null],
      [inPod('p1', { token: 'expired' }), 'the token has expired', null],
      [inPod('p1', { token: 'made-up' }), 'the token was not issued here', null],
      [inPod('p1', { token: null }), 'no key is bound to its pod', null],
      [inPod('p1', { token: 'token-of-p2' }), 'its token is another pod’s', 'p2'],
      [inPod('p2', { channel: 'egress' }), 'no key is bound to its pod', null],
      [inPod('p2', { publicKey: spki(other.publicKey) }), 'its signature is wrong', null],
      [
        (nonce: string, own: Parameters<ReturnType<typeof hello>>[1]) => inPod('p2')(`${nonce}x`, own),
        'its signature is wrong',
        null,
      ],
      [inPod('p2', { publicKey: 'nonsense' }), 'its key cannot be read', null],
      [() => 'not json', 'it did not say hello', null],
      [() => '{"type":"done"}', 'it did not say hello', null],
    ] as const) {
      await cluster.dial(answer).closed;
      expect(cluster.refusals.pop()).toEqual({ reason, pod, remoteAddress: '127.0.0.1' });
    }
    expect([cluster.links, cluster.keys.size]).toEqual([[], 0]);
  });

  it('takes no hello that is bytes or too long, no older TLS, no plain request', async () => {
    const bytes = cluster.dial(() => null);
    bytes.socket.on('message', () => bytes.socket.send(Buffer.from('{}')));
    await bytes.closed;
    await cluster.dial(() => 'x'.repeat(1024 * 1024)).closed;
    await cluster.dial(() => 'x'.repeat(9 * 1024 * 1024)).closed;
    expect(reasons()).toEqual(['it did not say hello', 'it said more than hello']);
    const { port, cert } = cluster;
    const fails = (url: string, options: object): Promise<string> =>
      new Promise((resolve) => new WebSocket(url, options).on('error', ({ message }) => resolve(message)));
    const known = { ca: cert, checkServerIdentity: () => false };
    expect(await fails(`wss://127.0.0.1:${port}/runner-link`, { ...known, maxVersion: 'TLSv1.2' })).toMatch(/alert/);
    expect(await fails(`wss://127.0.0.1:${port}/other`, known)).toMatch(/400/);
    expect(await fails(`ws://127.0.0.1:${port}/runner-link`, {})).toMatch(/hang up|ECONNRESET/);
  });

  it('ends the link of a runner that answers for calls that it was not given, and tells whose it was', async () => {
    cluster.tokens.set('token-of-p1', podOf('p1'));
    const runner = cluster.dial(inPod('p1'));
    await runner.hears('bound');
    runner.say({ type: 'done', callId: 'c1', result: { outcome: 'completed', isError: false, text: 'forged' } });
    await runner.closed;
    expect(cluster.refusals).toEqual([
      { reason: 'it answered for a call that it was not given', pod: 'p1', remoteAddress: '127.0.0.1' },
    ]);
    expect(cluster.links[0]?.link.open).toBe(false);
  });

  it('keeps the newest link of a pod', async () => {
    cluster.tokens.set('token-of-p1', podOf('p1'));
    const keys = newKeys();
    const first = cluster.dial(inPod('p1', {}, keys));
    await first.hears('bound');
    const second = cluster.dial(inPod('p1', { token: null }, keys));
    await second.hears('bound');
    await first.closed;
    expect(cluster.links.map(({ link }) => link.open)).toEqual([false, true]);
  });

  it('tells a refusal a few times, however often somebody knocks', async () => {
    for (let i = 0; i < 20; i++) await cluster.dial(inPod('p1', { token: 'made-up' })).closed;
    expect([cluster.refusals.length, reasons()]).toEqual([3, ['the token was not issued here']]);
  });

  it('is not kept shut by those who hold it open, and lets go of them', async () => {
    const held: Socket[] = [];
    const ended: Promise<unknown>[] = [];
    const hold = (socket: Socket): void => {
      socket.on('error', () => undefined).resume();
      ended.push(new Promise((resolve) => socket.once('close', resolve)));
      held.push(socket);
    };
    const { port, cert } = cluster;
    for (let i = 0; i < 200; i++) {
      if (i % 4 > 0) hold(connectTcp({ host: '127.0.0.1', port }));
      else hold(connectTls({ host: '127.0.0.1', port, ca: cert, checkServerIdentity: () => undefined }));
      await sleep(1);
    }
    const silent = Array.from({ length: 10 }, () => cluster.dial(() => null));
    await until('that most are let go', () => held.filter((socket) => !socket.closed).length <= 64, 2_000);
    cluster.start('p1');
    await cluster.linked('p1');
    await Promise.all([...ended, ...silent.map(({ closed }) => closed)]);
    expect(cluster.refusals).toEqual([]);
    expect((await cluster.linked('p1')).open).toBe(true);
  }, 30_000);

  it('lets a runner in while others dial and are refused as fast as they can', async () => {
    let knocks = 0;
    const over = new AbortController();
    const knocking = Array.from({ length: 20 }, async () => {
      while (!over.signal.aborted && knocks < 2_000) {
        knocks++;
        await cluster.dial(inPod('p2', { token: 'made-up' })).closed;
      }
    });
    cluster.start('p1');
    const link = await cluster.linked('p1');
    welcome(link);
    expect(await link.exec(bash('echo in'))).toMatchObject({ text: 'in\n' });
    over.abort();
    await Promise.all(knocking);
    expect(knocks).toBeGreaterThan(20);
    expect(cluster.refusals.length).toBe(3);
  }, 30_000);
});
