import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer as createHttpServer, type IncomingMessage, request, type Server } from 'node:http';
import { type AddressInfo, connect, createServer, type Socket, type Server as TcpServer } from 'node:net';
import type { Duplex } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { EgressProxy } from '../egress/egress-proxy.ts';
import { Cluster, freePort, podOf, until } from '../test/cluster.ts';
import { type Dialler, hello, newKeys, spki } from '../test/dialler.ts';
import type { PodIdentity } from './cluster-door.ts';

const PUBLIC = '93.184.215.14';
const PIECE = randomBytes(64 * 1024);

let cluster: Cluster;
let proxy: EgressProxy;
let port: number;
let streams: Duplex[];
let whose: PodIdentity[];
let clients: Socket[];
let web: Server;
let target: TcpServer;
/** What the server behind the proxy does with a connection; it sends everything back unless told otherwise. */
let serve: (socket: Socket) => unknown;
const portOf = (server: Server | TcpServer): number => (server.address() as AddressInfo).port;

beforeEach(async () => {
  [streams, whose, clients] = [[], [], []];
  serve = (socket) => socket.pipe(socket);
  web = createHttpServer((incoming, response) => void incoming.pipe(response));
  target = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => undefined);
    serve(socket);
  });
  for (const server of [web, target]) await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  proxy = new EgressProxy({ type: 'unrestricted' }, () => undefined, {
    resolve: () => Promise.resolve([PUBLIC]),
    connect: (_address, to) =>
      connect({ host: '127.0.0.1', port: portOf(to === 80 ? web : target), allowHalfOpen: true }),
  });
  cluster = new Cluster();
  cluster.onEgress = (pod, stream) => {
    whose.push(pod);
    streams.push(stream);
    proxy.accept(stream);
  };
  await cluster.open();
  port = await freePort();
});
afterEach(async () => {
  for (const client of clients) client.destroy();
  await cluster.close();
  await proxy.close();
  web.close();
  target.close();
});
/** A real runner whose port leads out. */
async function start() {
  const runner = cluster.start('p1', { HOLDFAST_PROXY_PORT: String(port) });
  await cluster.linked('p1');
  return runner;
}
const dial = (): Socket => {
  const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true });
  clients.push(socket);
  return socket;
};
/** A connection to the target by way of runner, door and proxy. */
async function tunnel(): Promise<Socket> {
  const socket = dial();
  socket.write('CONNECT good.example:443 HTTP/1.1\r\nhost: good.example\r\n\r\n');
  const [answer] = (await once(socket, 'data')) as [Buffer];
  socket.pause();
  const head = 'HTTP/1.1 200 Connection established\r\n\r\n';
  expect(answer.toString('utf8', 0, head.length)).toBe(head);
  if (answer.length > head.length) socket.unshift(answer.subarray(head.length));
  return socket;
}
const closed = (socket: Duplex): Promise<Error | null> => {
  let fault: Error | null = null;
  socket.on('error', (error) => (fault = error));
  return new Promise((resolve) => socket.once('close', () => resolve(fault)));
};
const gone = (): Promise<void> => until('the end of all', () => streams.every((stream) => stream.closed), 3_000);

describe('a connection out of a pod', () => {
  it('carries a request with a big body, and each direction ends by itself', async () => {
    await start();
    const sent = randomBytes(20_000_000);
    const asked = request({ host: '127.0.0.1', port, method: 'POST', path: 'http://good.example/' });
    asked.end(sent);
    const [answer] = (await once(asked, 'response')) as [IncomingMessage];
    expect((await buffer(answer)).equals(sent)).toBe(true);
    const client = await tunnel();
    client.end(sent);
    expect((await buffer(client)).equals(sent)).toBe(true);
    expect(whose).toEqual([podOf('p1'), podOf('p1')]);
    await gone();
  });

  it('brings an answer that begins when the question has ended', async () => {
    serve = async (socket) => {
      const question = await text(socket);
      await sleep(200);
      socket.end(`${question.length} bytes, `.repeat(3));
    };
    await start();
    const client = await tunnel();
    client.end('x'.repeat(100_000));
    expect(await text(client)).toBe('100000 bytes, '.repeat(3));
    await gone();
  });

  it('brings what was sent before the other side began to listen, and ends before the question does', async () => {
    serve = (socket) => socket.end('bye');
    await start();
    const client = await tunnel();
    expect(await text(client)).toBe('bye');
    client.end();
    await gone();
  });

  it('is refused by the proxy’s rules as on one machine', async () => {
    await start();
    const answer = dial();
    answer.end('CONNECT good.example:0 HTTP/1.1\r\n\r\n');
    expect(await text(answer)).toMatch(/^HTTP\/1.1 403/);
    const nonsense = dial();
    nonsense.end('nonsense\r\n\r\n');
    expect(await closed(nonsense.resume())).toMatchObject({ code: 'ECONNRESET' });
    await gone();
  });

  for (const direction of ['out', 'in'] as const) {
    it(`holds back who sends faster than the other side takes it: ${direction}`, async () => {
      const there = new Promise<Socket>((resolve) => (serve = resolve));
      await start();
      const here = await tunnel();
      const [from, to] = direction === 'out' ? [here, await there] : [await there, here];
      to.pause();
      const pieces = 1_600;
      const hash = createHash('sha256');
      let written = 0;
      const write = async (): Promise<void> => {
        for (; written < pieces; written++) {
          hash.update(PIECE);
          if (!from.write(PIECE)) await once(from, 'drain');
        }
        from.end();
      };
      const writing = write();
      let before = -1;
      // It comes to rest.
      while (before !== written) {
        before = written;
        await sleep(300);
      }
      // Of 100 MB no more than the machine's own buffers hold.
      expect(written).toBeLessThan(pieces / 2);
      const received = createHash('sha256');
      for await (const bytes of to) received.update(bytes as Buffer);
      await writing;
      expect(received.digest('hex')).toBe(hash.digest('hex'));
      to.end();
      await gone();
    }, 30_000);
  }

  it('is reset when its link breaks, and ends when either side does', async () => {
    const there: Socket[] = [];
    serve = (socket) => {
      there.push(socket.resume().on('end', () => socket.end()));
      if (there.length === 1) socket.on('data', () => socket.resetAndDestroy());
    };
    await start();
    const [upstream, own, link] = [await tunnel(), await tunnel(), await tunnel()];
    const ends = [upstream, own, link].map((socket) => closed(socket.resume()));
    upstream.write('x');
    own.resetAndDestroy();
    await until('the far end of it', () => there[1]?.closed === true);
    expect(await ends[1]).toBeNull();
    upstream.end();
    expect(await ends[0]).toBeNull();
    expect(there[2]?.closed).toBe(false);
    await cluster.doors[0]?.close();
    expect(await ends[2]).toMatchObject({ code: 'ECONNRESET' });
    await until('the far end of all', () => there.every((socket) => socket.closed));
  });

  it('ends with its runner', async () => {
    const there = new Promise<Socket>((resolve) => (serve = resolve));
    const runner = await start();
    await tunnel();
    const far = once((await there).resume(), 'end');
    runner.child.kill('SIGKILL');
    await far;
    await gone();
    expect(streams.length).toBe(1);
  });

  it('is reset while the runner is not let in', async () => {
    cluster.tokens.set('expired', { refused: 'the token has expired' });
    cluster.start('p1', { HOLDFAST_PROXY_PORT: String(port) }, 'expired');
    await until('a refusal', () => cluster.refusals.length > 0);
    expect(await closed(dial().resume())).toMatchObject({ code: 'ECONNRESET' });
    expect(streams).toEqual([]);
  });
});

describe('who plays a runner', () => {
  const keys = newKeys();
  beforeEach(() => {
    cluster.keys.set('p1', spki(keys.publicKey));
    cluster.onEgress = (_pod, stream) => streams.push(stream);
  });
  const out = (): Dialler => cluster.dial(hello({ pod: 'p1', token: null, channel: 'egress' }, keys));

  it('gets 128 connections out and no more, until one ends', async () => {
    const open = Array.from({ length: 128 }, out);
    for (const one of open) await one.hears('welcome');
    await out().closed;
    expect(cluster.refusals).toEqual([
      { reason: 'it has 128 connections out already', pod: 'p1', remoteAddress: '127.0.0.1' },
    ]);
    open[0]?.socket.terminate();
    await until('the end of one', () => streams.some((stream) => stream.closed));
    await out().hears('welcome');
    for (const stream of streams) stream.destroy();
    await Promise.all(open.map((one) => one.closed));
  });

  it('gets to its model door by another channel, with the same proof', async () => {
    const channels: string[] = [];
    cluster.onEgress = (_pod, stream, channel) => {
      channels.push(channel);
      streams.push(stream);
    };
    for (const channel of ['door', 'egress'] as const)
      await cluster.dial(hello({ pod: 'p1', token: null, channel }, keys)).hears('welcome');
    await cluster.dial(hello({ pod: 'p1', token: null, channel: 'door' }, newKeys())).closed;
    expect(channels).toEqual(['door', 'egress']);
  });

  it('loses the connection when it sends text, goes on after its end, or sends too much at once', async () => {
    for (const wrong of [['text'], [Buffer.alloc(0), Buffer.from('more')], [Buffer.alloc(9 * 1024 * 1024)]]) {
      const one = out();
      await one.hears('welcome');
      streams.at(-1)?.resume();
      for (const message of wrong) one.socket.send(message);
      await one.closed;
    }
    await gone();
    expect(streams.length).toBe(3);
  });
});
