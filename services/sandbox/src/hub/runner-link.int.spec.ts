import { createHash } from 'node:crypto';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ExecBody, LINK_SILENCE_MS, type RunnerMessage, type RunnerOutcome } from '@holdfast/contracts';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { WebSocketServer } from 'ws';
import { Dialler } from '../test/dialler.ts';
import { LINK_SOCKETS } from './greeting.ts';
import { type KeepOutput, RunnerLink } from './runner-link.ts';

let server: Server;
let runner: Dialler;
let link: RunnerLink;
let faults: string[];
let losses: number;
/** The link's end was told. */
let ended: Promise<void>;
let kept: string[];

const keep: KeepOutput = async (pieces) => {
  const whole = await text(pieces).catch(() => 'broken off');
  kept.push(whole);
  return whole === 'broken off' ? null : { digest: whole, sizeBytes: whole.length };
};
beforeEach(async () => {
  [faults, losses, kept] = [[], 0, []];
  server = createServer();
  let end = (): void => undefined;
  ended = new Promise((resolve) => (end = resolve));
  const onLost = (): void => {
    losses++;
    end();
  };
  const linked = new Promise<RunnerLink>((resolve) =>
    new WebSocketServer({ ...LINK_SOCKETS, server }).on('connection', (socket) =>
      resolve(
        new RunnerLink(
          socket,
          { journalId: 'j1', pod: 'p1', keepsFiles: true },
          { onLost, onFault: (reason) => faults.push(reason) },
        ),
      ),
    ),
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  runner = new Dialler(`ws://127.0.0.1:${(server.address() as AddressInfo).port}/runner-link`, () => null);
  link = await linked;
});
afterEach(async () => {
  runner.socket.terminate();
  link.close();
  await ended;
  server.close();
});
const welcome = async (): Promise<void> => {
  link.welcome({ env: {}, keep });
  await runner.hears('welcome');
};
const call: ExecBody = { sessionId: 's', callId: 'c1', generation: 1, tool: 'bash', input: {}, timeoutMs: 1_000 };
const result: RunnerOutcome = { outcome: 'completed', isError: false, text: 'cut' };
const output = (bytes: string) =>
  ({ type: 'output', callId: 'c1', data: Buffer.from(bytes).toString('base64') }) as const;
const lost = { code: 'sandbox.link-lost' };
const digestOf = (words: string): string => createHash('sha256').update(words).digest('hex');
const asked = <T extends string>(type: T) =>
  runner.heard.filter((message) => message.type === type) as Extract<(typeof runner.heard)[number], { type: T }>[];
/** Everything that the runner has said so far was read. */
const read = async (): Promise<void> => {
  const measured = link.measure();
  await sleep(5);
  runner.say({ type: 'measured', id: asked('measure').at(-1)?.id ?? '', bytes: 1 });
  await measured;
};

describe('files of a session', () => {
  const one = { path: '/mnt/session/uploads/one', digest: 'd1' };
  const two = { path: '/mnt/session/uploads/two', digest: 'd2' };
  const MIB = 1024 * 1024;
  const sizes = [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB];

  /** Plays a runner that lacks these; what it was handed, by path. */
  function lacking(paths: readonly string[], fault: (path: string) => string | null = () => null) {
    const got = new Map<string, { bytes: Buffer[]; largest: number; whole: boolean }>();
    runner.socket.on('message', (data) => {
      const message = JSON.parse(String(data as Buffer)) as (typeof runner.heard)[number];
      if (message.type === 'uploads') runner.say({ type: 'missing', id: message.id, paths: [...paths] });
      if (message.type !== 'upload') return;
      const piece = Buffer.from(message.data, 'base64');
      const before = got.get(message.file.path) ?? { bytes: [], largest: 0, whole: false };
      expect(message.at).toBe(before.bytes.reduce((sum, { length }) => sum + length, 0));
      got.set(message.file.path, {
        bytes: [...before.bytes, piece],
        largest: Math.max(before.largest, piece.length),
        whole: message.last,
      });
      runner.say({ type: 'uploaded', id: message.id, fault: fault(message.file.path) });
    });
    return got;
  }

  it.each(sizes)('of %d bytes arrives whole, in pieces of a size', async (size) => {
    await welcome();
    const got = lacking([one.path]);
    const bytes = Buffer.alloc(size, 'x');
    async function* cut() {
      for (let from = 0; from < size; from += 300_000) yield bytes.subarray(from, from + 300_000);
    }
    await link.upload([one, two], () => Promise.resolve(cut()));
    expect([...got.keys()]).toEqual([one.path]);
    const file = got.get(one.path);
    expect(Buffer.concat(file?.bytes ?? []).equals(bytes)).toBe(true);
    expect(file?.whole).toBe(true);
    expect(file?.largest).toBeLessThanOrEqual(MIB);
  });

  it('that are there already are not opened; one that is gone is left out; a fault is told', async () => {
    await welcome();
    const opened: string[] = [];
    lacking([one.path, two.path], (path) => (path === two.path ? 'No space left' : null));
    const open = async ({ path }: { path: string }) => {
      opened.push(path);
      return path === one.path ? null : asyncOf('x');
    };
    await expect(link.upload([one, two], open)).rejects.toMatchObject({
      code: 'sandbox.upload',
      message: expect.stringContaining('No space left'),
    });
    expect(opened).toEqual([one.path, two.path]);
  });

  it('end with the link', async () => {
    await welcome();
    const putting = link.upload([one], () => Promise.resolve(asyncOf('x')));
    await runner.hears('uploads');
    runner.socket.terminate();
    await expect(putting).rejects.toMatchObject(lost);
  });

  async function* asyncOf(words: string) {
    yield Buffer.from(words);
  }
});

describe('outputs', () => {
  const MIB = 1024 * 1024;
  /** Plays a runner whose outputs are these. */
  function leaving(
    contents: Record<string, Buffer>,
    pieceOf: (path: string, piece: Buffer) => Buffer | null = (_, b) => b,
  ) {
    runner.socket.on('message', (data) => {
      const message = JSON.parse(String(data as Buffer)) as (typeof runner.heard)[number];
      if (message.type === 'outputs') {
        const files = Object.entries(contents).map(([path, { length }]) => ({ path, bytes: length, stamp: 's' }));
        runner.say({ type: 'outputs-found', id: message.id, files: files.slice(0, message.limit), more: false });
      }
      if (message.type !== 'read-output') return;
      const { file, at, bytes, id } = message;
      const piece = pieceOf(file.path, contents[file.path]?.subarray(at, at + bytes) ?? Buffer.alloc(0));
      runner.say({ type: 'output-read', id, data: piece?.toString('base64') ?? null });
    });
  }
  const bytesOf = async (pieces: AsyncIterable<Buffer>): Promise<Buffer> => {
    const all: Buffer[] = [];
    for await (const piece of pieces) all.push(piece);
    return Buffer.concat(all);
  };

  it('are listed and read, whatever their size', async () => {
    await welcome();
    const contents = Object.fromEntries([0, 1, MIB, 3 * MIB + 1].map((size) => [`${size}`, Buffer.alloc(size, 'x')]));
    leaving(contents);
    const { files } = await link.outputs(10);
    expect(files.map(({ path }) => path)).toEqual(Object.keys(contents));
    for (const file of files)
      expect((await bytesOf(link.readOutput(file))).equals(contents[file.path] as Buffer)).toBe(true);
  });

  it.each([
    ['that was changed meanwhile', () => null],
    ['that is shorter than it was said to be', () => Buffer.alloc(0)],
    ['that is longer than it was said to be', () => Buffer.alloc(20)],
  ])('one %s is not taken for whole', async (_name, pieceOf) => {
    await welcome();
    leaving({ a: Buffer.alloc(10) }, pieceOf);
    const [file] = (await link.outputs(1)).files;
    if (file === undefined) throw new Error('not listed');
    await expect(bytesOf(link.readOutput(file))).rejects.toMatchObject({ code: 'sandbox.output-changed' });
  });
});

describe('a call', () => {
  it('waits for the welcome; whoever asks before is told so', async () => {
    for (const early of [link.exec(call), link.claim(1), link.cancel('c1', 1)])
      await expect(early).rejects.toMatchObject({ code: 'sandbox.unclaimed' });
    await welcome();
    const claimed = link.claim(1);
    await runner.hears('claim');
    runner.say({ type: 'answer', id: asked('claim')[0]?.id ?? '', stale: false, result: null });
    await claimed;
    expect(runner.heard.map(({ type }) => type)).toEqual(['welcome', 'claim']);
  });

  it('brings its result, and its whole output as it comes', async () => {
    await welcome();
    const outcomes = [link.exec(call), link.exec(call)];
    for (const piece of ['one ', 'two']) runner.say(output(piece));
    runner.say({ type: 'done', callId: 'c1', result });
    for (const outcome of outcomes)
      expect(await outcome).toEqual({ ...result, fullOutput: { digest: 'one two', sizeBytes: 7 } });
    expect([link.busy, faults]).toEqual([false, []]);
  });

  it('that is a prompt whose events cannot be passed on ends its link, and nothing else', async () => {
    await welcome();
    const prompt = {
      ...{ callId: 'c1', generation: 1, sessionId: null, content: [], after: 0 },
      harness: { type: 'scripted', model: 'm', system: null, tools: {}, contextTokens: 1, outputTokens: 1 },
    };
    const outcome = link.prompt(prompt, () => {
      throw new Error('it is too large for the bus');
    });
    await runner.hears('prompt');
    runner.say({ type: 'progress', callId: 'c1', sequence: 1, event: { type: 'thinking' } });
    await expect(outcome).rejects.toMatchObject(lost);
    expect(faults).toEqual([expect.stringMatching(/cannot be passed on/)]);
  });

  it('that is a prompt tells what its harness does, to each who asks from where they ask', async () => {
    await welcome();
    const prompt = {
      ...{ callId: 'c1', generation: 1, sessionId: null, content: [], after: 0 },
      harness: { type: 'scripted', model: 'm', system: null, tools: {}, contextTokens: 1, outputTokens: 1 },
    };
    const told: number[][] = [[], []];
    const first = link.prompt(prompt, (sequence) => told[0]?.push(sequence));
    const event = { type: 'thinking' } as const;
    for (const sequence of [1, 2]) runner.say({ type: 'progress', callId: 'c1', sequence, event });
    await read();
    const second = link.prompt({ ...prompt, generation: 2, after: 1 }, (sequence) => told[1]?.push(sequence));
    for (const sequence of [2, 3]) runner.say({ type: 'progress', callId: 'c1', sequence, event });
    runner.say(output('lines'));
    runner.say({ type: 'done', callId: 'c1', result });
    for (const outcome of [first, second])
      expect(await outcome).toEqual({ ...result, fullOutput: { digest: 'lines', sizeBytes: 5 } });
    expect(told).toEqual([
      [1, 2, 2, 3],
      [2, 3],
    ]);
    link.permit({ callId: 'c1', generation: 2, toolCallId: 't', allow: true });
    await runner.hears('permit');
    expect(asked('prompt')).toMatchObject([{ after: 0 }, { after: 1 }]);
    expect(faults).toEqual([]);
  });

  it('is lost with its link, and what came of its output is dropped', async () => {
    await welcome();
    const pending = [link.exec(call), link.claim(1), link.measure()];
    runner.say(output('one'));
    await runner.hears('measure');
    await sleep(50);
    runner.socket.terminate();
    for (const one of pending) await expect(one).rejects.toMatchObject(lost);
    await sleep(20);
    expect([kept, losses, link.busy]).toEqual([['broken off'], 1, false]);
    for (const late of [link.exec(call), link.claim(1), link.cancel('c1', 1), link.measure()])
      await expect(late).rejects.toMatchObject(lost);
  });

  it('that its runner had not begun when it left was not sent; what else is asked is lost', async () => {
    await welcome();
    const [told, untold, claim] = [link.exec(call), link.exec({ ...call, callId: 'c2' }), link.claim(1)];
    await runner.hears('claim');
    runner.say({ type: 'done', callId: 'c1', result });
    runner.socket.close(4_000);
    expect(await told).toMatchObject(result);
    await expect(untold).rejects.toMatchObject({ kind: 'unavailable', code: 'sandbox.not-linked' });
    await expect(claim).rejects.toMatchObject(lost);
    expect([faults, losses]).toEqual([[], 1]);
  });

  it('that a runner leaves open is lost with it', async () => {
    await welcome();
    const left = link.exec(call);
    await runner.hears('exec');
    runner.socket.close(1_001);
    await expect(left).rejects.toMatchObject(lost);
  });

  it('of an older generation is refused, and no newer one with it', async () => {
    await welcome();
    const [older, newer] = [link.exec(call), link.exec({ ...call, generation: 2 })];
    const stale = { code: 'sandbox.stale-generation' };
    runner.say({ type: 'refused', callId: 'c1', code: 'stale-generation' });
    await expect(older).rejects.toMatchObject(stale);
    runner.say({ type: 'done', callId: 'c1', result });
    expect(await newer).toMatchObject(result);
    const alone = link.exec(call);
    runner.say({ type: 'refused', callId: 'c1', code: 'stale-generation' });
    await expect(alone).rejects.toMatchObject(stale);
    expect([link.busy, faults]).toEqual([false, []]);
  });

  it('ends on both ways when it is cancelled, in any order', async () => {
    await welcome();
    const over = { outcome: 'cancelled', isError: true, text: 'Cancelled.' } as const;
    for (const order of ['answer first', 'done first']) {
      const outcome = link.exec(call);
      const cancelled = link.cancel('c1', 1);
      await runner.hears('cancel', order === 'answer first' ? 1 : 2);
      const answer = () =>
        runner.say({ type: 'answer', id: asked('cancel').at(-1)?.id ?? '', stale: false, result: over });
      const done = () => runner.say({ type: 'done', callId: 'c1', result: over });
      for (const say of order === 'answer first' ? [answer, done] : [done, answer]) say();
      expect([await outcome, await cancelled]).toEqual([{ ...over, fullOutput: null }, over]);
    }
    expect(faults).toEqual([]);
  });

  it('may be answered twice when it was asked for twice', async () => {
    await welcome();
    const first = link.exec(call);
    runner.say({ type: 'done', callId: 'c1', result });
    await first;
    const second = link.exec(call);
    for (const piece of ['late', 'later']) runner.say(output(piece));
    runner.say({ type: 'done', callId: 'c1', result });
    runner.say({ type: 'done', callId: 'c1', result });
    await second;
    await read();
    expect([faults, link.open]).toEqual([[], true]);
  });

  it('whose output nobody takes holds its runner back, and the link lives', async () => {
    let take = (): void => undefined;
    link.welcome({
      env: {},
      keep: async (pieces) => {
        await new Promise<void>((resolve) => (take = resolve));
        return { digest: 'all', sizeBytes: (await text(pieces)).length };
      },
    });
    await runner.hears('welcome');
    const outcome = link.exec(call);
    const piece = 'x'.repeat(512 * 1024);
    for (let i = 0; i < 60; i++) runner.say(output(piece));
    await sleep(300);
    expect(runner.socket.bufferedAmount).toBeGreaterThan(10 * piece.length);
    take();
    runner.say({ type: 'done', callId: 'c1', result });
    expect(await outcome).toMatchObject({ fullOutput: { sizeBytes: 60 * piece.length } });
    expect(faults).toEqual([]);
  });

  it('goes on when its output cannot be kept any more', async () => {
    link.welcome({ env: {}, keep: () => Promise.resolve(null) });
    await runner.hears('welcome');
    const outcome = link.exec(call);
    for (let i = 0; i < 20; i++) runner.say(output('x'.repeat(512 * 1024)));
    runner.say({ type: 'done', callId: 'c1', result });
    expect(await outcome).toEqual({ ...result, fullOutput: null });
  });
});

describe('a measuring', () => {
  it('brings bytes, or more than can be counted, also before the welcome', async () => {
    const [one, other] = [link.measure(), link.measure()];
    await runner.hears('measure', 2);
    const [first, second] = asked('measure');
    runner.say({ type: 'measured', id: second?.id ?? '', bytes: null });
    runner.say({ type: 'measured', id: first?.id ?? '', bytes: 4_096 });
    expect([await one, await other]).toEqual([4_096, Number.POSITIVE_INFINITY]);
  });
});

describe('a runner that does what none of ours does', () => {
  const forged = { type: 'done', callId: 'c2', result } as const;
  const toolCall = (command: string): RunnerMessage => ({
    ...{ type: 'progress', callId: 'c1', sequence: 1 },
    event: {
      type: 'tool.started',
      callId: 't',
      name: 'bash',
      input: { command },
      native: { name: 'bash', input: {} },
      asks: false,
    },
  });
  for (const [what, say, reason] of [
    ['answers for a call that it was not given', () => runner.say(forged), /not given/],
    ['sends output of such a call', () => runner.say({ ...output('x'), callId: 'c2' }), /not given/],
    ['refuses such a call', () => runner.say({ type: 'refused', callId: 'c2', code: 'stale-generation' }), /not given/],
    ['says what is no message', () => runner.socket.send('{"type":"done"}'), /cannot be read/],
    ['says what is no JSON', () => runner.socket.send('{'), /cannot be read/],
    ['says hello again', () => runner.socket.send('{"type":"hello"}'), /cannot be read/],
    [
      'sends bytes',
      () => runner.socket.send(Buffer.from(JSON.stringify({ ...forged, callId: 'c1' }))),
      /pack that it was not asked for/,
    ],
    [
      'sends a pack that nobody asked for',
      () => runner.say({ type: 'pack', digest: digestOf('x'), bytes: 1 }),
      /not asked for/,
    ],
    ['wants a pack for nothing', () => runner.say({ type: 'want', digest: digestOf('x') }), /not asked for/],
    ['tells more of a tool than there may be', () => runner.say(toolCall('x'.repeat(1024 * 1024))), /cannot be read/],
    ['sends a message of 9 MiB', () => runner.socket.send('x'.repeat(9 * 1024 * 1024)), /cannot be read/],
    [
      'sends more output than there is',
      () => {
        for (let i = 0; i < 20; i++) runner.say(output('x'.repeat(4 * 1024 * 1024)));
      },
      /more output/,
    ],
  ] as const) {
    it(`loses its link and is told once: it ${what}`, async () => {
      await welcome();
      const outcome = link.exec(call);
      await runner.hears('exec');
      say();
      runner.say(forged);
      await expect(outcome).rejects.toMatchObject(lost);
      await Promise.all([runner.closed, ended]);
      expect([faults, losses]).toEqual([[expect.stringMatching(reason)], 1]);
    });
  }
});

describe('a link', () => {
  it('that nothing is heard of ends, and says so', async () => {
    await welcome();
    runner.socket.pause();
    await ended;
    expect([link.open, link.silent]).toEqual([false, true]);
  }, 20_000);

  it('outlives a hub that stood still: what was not read meanwhile says nothing of the runner', async () => {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, LINK_SILENCE_MS + 1_000);
    await sleep(500);
    expect([link.open, link.silent]).toEqual([true, false]);
  }, 20_000);
});

describe('packs over a link', () => {
  const ask = { base: null, exclude: [], limits: { entries: 1, bytes: 1 } };
  const pack = (words: string): void => {
    runner.say({ type: 'pack', digest: digestOf(words), bytes: words.length });
    runner.socket.send(Buffer.from(words));
  };
  const fault = { code: 'failed', message: 'enough' } as const;
  const answered = (): void =>
    runner.say({ type: 'checkpointed', id: asked('checkpoint').at(-1)?.id ?? '', taken: null, fault });

  it('are taken while a checkpoint is, no more at a time than may be under way, and told when they are kept', async () => {
    await welcome();
    const taken: string[] = [];
    const keep1 = Promise.withResolvers<void>();
    const over = link.checkpoint(ask, {
      take: async (digest, bytes) => {
        taken.push(`${digest.slice(0, 4)} ${bytes.toString()}`);
        await keep1.promise;
      },
      give: () => Promise.reject(new Error('none')),
    });
    await runner.hears('checkpoint');
    pack('one');
    pack('two');
    await read();
    expect(taken).toEqual([`${digestOf('one').slice(0, 4)} one`, `${digestOf('two').slice(0, 4)} two`]);
    expect(asked('pack-kept')).toEqual([]);
    keep1.resolve();
    await runner.hears('pack-kept', 2);
    answered();
    expect(await over).toMatchObject({ taken: null, fault });
    // Another may be taken now.
    const next = link.restore(null, () => Promise.reject(new Error('none')));
    await runner.hears('restore');
    runner.say({ type: 'restored', id: asked('restore')[0]?.id ?? '', fresh: true, restored: false, fault: null });
    expect(await next).toMatchObject({ fresh: true });
    expect(faults).toEqual([]);
  });

  it('are given in pieces, in order, and said not to be there when they cannot be had', async () => {
    await welcome();
    const large = Buffer.alloc(1_300_000, 'abc');
    const heard: Buffer[] = [];
    runner.socket.on('message', (data, isBinary) => {
      if (isBinary) heard.push(data as Buffer);
    });
    const over = link.restore(null, (digest) =>
      digest === digestOf('x') ? Promise.resolve(large) : Promise.reject(new Error('none')),
    );
    await runner.hears('restore');
    runner.say({ type: 'want', digest: digestOf('x') });
    runner.say({ type: 'want', digest: digestOf('y') });
    await runner.hears('pack', 2);
    expect(asked('pack').map(({ bytes }) => bytes)).toEqual([large.length, null]);
    expect(Buffer.concat(heard).equals(large)).toBe(true);
    runner.say({ type: 'restored', id: asked('restore')[0]?.id ?? '', fresh: true, restored: true, fault: null });
    await over;
  });

  for (const [what, say, reason] of [
    [
      'under the name of another',
      () => {
        runner.say({ type: 'pack', digest: digestOf('good'), bytes: 4 });
        runner.socket.send(Buffer.from('evil'));
      },
      /name of another/,
    ],
    [
      'longer than it said',
      () => {
        runner.say({ type: 'pack', digest: digestOf('four'), bytes: 4 });
        runner.socket.send(Buffer.from('fours'));
      },
      /bytes of no pack/,
    ],
    [
      'in pieces of nothing',
      () => {
        runner.say({ type: 'pack', digest: digestOf('four'), bytes: 4 });
        runner.socket.send(Buffer.alloc(0));
      },
      /bytes of no pack/,
    ],
    [
      'more than may be under way',
      () => {
        for (const words of ['a', 'b', 'c']) pack(words);
      },
      /more packs than it may/,
    ],
    [
      'larger than packs are',
      () => runner.say({ type: 'pack', digest: digestOf('x'), bytes: 17 * 1024 * 1024 }),
      /cannot be read/,
    ],
    [
      'wanted in numbers',
      () => {
        for (let i = 0; i < 9; i++) runner.say({ type: 'want', digest: digestOf('x') });
      },
      /wanted more/,
    ],
  ] as const) {
    it(`end the link, which is told: ${what}`, async () => {
      await welcome();
      const never = new Promise<never>(() => undefined);
      const over = link.checkpoint(ask, { take: () => never, give: () => never });
      await runner.hears('checkpoint');
      say();
      await expect(over).rejects.toMatchObject(lost);
      await ended;
      expect(faults).toEqual([expect.stringMatching(reason)]);
    });
  }
});
