import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { type McpTools, startMcpServer, type TestMcpServer } from '@holdfast/testing';
import { afterEach, describe, expect, it } from '@jest/globals';
import { z } from 'zod';
import { McpServers } from './mcp-servers.ts';
import { PublicNetwork } from './public-network.ts';

const bounds = { connectMs: 2_000, maxBytes: 300_000, maxTools: 3 };
const ends: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

const PNG = 'iVBORw0KGgo=';
const usual: McpTools = (server) => {
  server.registerTool(
    'add',
    { description: 'adds', inputSchema: z.object({ a: z.number(), b: z.number() }) },
    ({ a, b }) => ({
      content: [{ type: 'text', text: String(a + b) }],
    }),
  );
  server.registerTool('draw', { description: 'draws', inputSchema: z.object({}) }, () => ({
    content: [
      { type: 'image', mimeType: 'image/png', data: PNG },
      { type: 'image', mimeType: 'image/tiff', data: PNG },
      { type: 'audio', mimeType: 'audio/wav', data: PNG },
      { type: 'resource', resource: { uri: 'file:///a', text: 'in a file' } },
      { type: 'resource_link', uri: 'file:///b', name: 'b' },
    ],
  }));
  server.registerTool('fail', { description: 'fails', inputSchema: z.object({}) }, () => ({
    content: [{ type: 'text', text: 'no such ticket\0' }],
    isError: true,
  }));
};
async function start(tools: McpTools = usual, options: { refuse?: number } = {}): Promise<TestMcpServer> {
  const server = await startMcpServer(tools, options);
  ends.push(() => server.stop());
  return server;
}
function client(...allowed: TestMcpServer[]): McpServers {
  const network = new PublicNetwork(new Set(allowed.map(({ host }) => host)));
  const servers = new McpServers(bounds, network);
  ends.push(
    () => network.close(),
    () => servers.close(),
  );
  return servers;
}
const at = ({ url }: { url: string }) => ({ type: 'url' as const, name: 'tracker', url });
const signal = () => new AbortController().signal;
const sent: string[] = [];
const call = (servers: McpServers, server: TestMcpServer, tool: string, input = {}, rest = {}) =>
  servers.call('sesn_a', at(server), tool, input, {
    signal: signal(),
    timeoutMs: 1_000,
    onSent: () => sent.push(tool),
    ...rest,
  });

describe('the tools of an MCP server', () => {
  it('are listed once per session while the list is fresh', async () => {
    const server = await start();
    const servers = client(server);
    const tools = await servers.tools('sesn_a', at(server), signal());
    expect(tools.map(({ name, description }) => [name, description])).toEqual([
      ['add', 'adds'],
      ['draw', 'draws'],
      ['fail', 'fails'],
    ]);
    expect(tools[0]?.inputSchema).toMatchObject({ type: 'object', required: ['a', 'b'] });
    await servers.tools('sesn_a', at(server), signal());
    await call(servers, server, 'add', { a: 1, b: 2 });
    expect(server.lists).toBe(1);
    await servers.tools('sesn_b', at(server), signal());
    expect(server.lists).toBe(2);
  });

  it('are none of a server that lists more than is allowed', async () => {
    const server = await start((mcp) => {
      usual(mcp);
      mcp.registerTool('fourth', { description: '', inputSchema: z.object({}) }, () => ({ content: [] }));
    });
    await expect(client(server).tools('sesn_a', at(server), signal())).rejects.toMatchObject({
      code: 'mcp.connection-failed',
      message: expect.stringContaining('lists 4 tools; at most 3'),
    });
  });

  it('are none of a server that is not there, that hangs, or that is no MCP server', async () => {
    const server = await start();
    const servers = client(server);
    await server.stop();
    const gone = { code: 'mcp.connection-failed', message: expect.stringContaining('The MCP server tracker') };
    await expect(servers.tools('sesn_a', at(server), signal())).rejects.toMatchObject(gone);
    for (const answer of [() => undefined, (response: { end(text: string): unknown }) => response.end('hello')]) {
      const other = createServer((_request, response) => void answer(response));
      await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
      ends.push(async () => {
        other.closeAllConnections();
        other.close();
      });
      const host = `127.0.0.1:${(other.address() as AddressInfo).port}`;
      const stub = { host, url: `http://${host}/` } as TestMcpServer;
      await expect(client(stub).tools('sesn_a', at(stub), signal())).rejects.toMatchObject(gone);
    }
  });

  it('are none of a server that wants credentials, which is said', async () => {
    for (const status of [401, 403]) {
      const server = await start(usual, { refuse: status });
      await expect(client(server).tools('sesn_a', at(server), signal())).rejects.toMatchObject({
        code: 'mcp.authentication-failed',
        message: expect.stringMatching(/tracker wants credentials .*vaults, which are not supported yet/),
      });
    }
  });

  it('are not asked of what is not on the public internet, by address, name or redirect', async () => {
    const server = await start();
    const refused = { code: 'mcp.connection-failed', message: expect.stringContaining('not on the public internet') };
    const port = server.host.split(':')[1];
    for (const url of [
      server.url,
      `http://localhost:${port}/mcp`,
      `http://[::1]:${port}/mcp`,
      'http://169.254.169.254/',
    ])
      await expect(client().tools('sesn_a', at({ url }), signal())).rejects.toMatchObject(refused);
    const redirecting = createServer((_request, response) => response.writeHead(307, { location: server.url }).end());
    await new Promise<void>((resolve) => redirecting.listen(0, '127.0.0.1', resolve));
    ends.push(async () => redirecting.close());
    const host = `127.0.0.1:${(redirecting.address() as AddressInfo).port}`;
    const stub = { host, url: `http://${host}/` } as TestMcpServer;
    await expect(client(stub).tools('sesn_a', at(stub), signal())).rejects.toMatchObject({
      code: 'mcp.connection-failed',
    });
    expect(server.lists).toBe(0);
  });

  it('are given up when the caller is', async () => {
    const server = await start();
    const gone = AbortSignal.abort(new Error('enough'));
    await expect(client(server).tools('sesn_a', at(server), gone)).rejects.toThrow('enough');
  });
});

describe('a call of an MCP tool', () => {
  it('answers in the wire’s blocks, and names what those cannot hold', async () => {
    const server = await start();
    const servers = client(server);
    const text = (words: string) => ({ type: 'text', text: words });
    const completed = { outcome: 'completed', isError: false };
    expect(await call(servers, server, 'add', { a: 1, b: 2 })).toMatchObject({ ...completed, content: [text('3')] });
    expect(await call(servers, server, 'draw')).toMatchObject({
      ...completed,
      content: [
        { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } },
        text('[an image of the type image/tiff, which cannot be shown]'),
        text('[audio content, which cannot be shown]'),
        text('in a file'),
        text('b: file:///b'),
      ],
    });
    expect(await call(servers, server, 'fail')).toMatchObject({
      isError: true,
      content: [text('no such ticket\uFFFD')],
    });
    expect(server.calls).toEqual(['add', 'draw', 'fail']);
  });

  it('that the server refuses is done, with its words', async () => {
    const server = await start();
    const servers = client(server);
    for (const [tool, input] of [
      ['none', {}],
      ['add', { a: 'x' }],
    ] as const)
      expect(await call(servers, server, tool, input)).toMatchObject({ isError: true, outcome: 'completed' });
  });

  it('that was not sent is unavailable; one without an answer has an unknown outcome; none is made twice', async () => {
    const slow: McpTools = (mcp) => {
      mcp.registerTool('wait', { description: '', inputSchema: z.object({}) }, async () => {
        await sleep(5_000, undefined, { ref: false });
        return { content: [] };
      });
      mcp.registerTool('flood', { description: '', inputSchema: z.object({}) }, () => ({
        content: [{ type: 'text', text: 'x'.repeat(400_000) }],
      }));
    };
    const server = await start(slow);
    const servers = client(server);
    const unknown = { isError: true, outcome: 'unknown' };
    expect(await call(servers, server, 'wait', {}, { timeoutMs: 300 })).toMatchObject(unknown);
    expect(await call(servers, server, 'flood', {}, { timeoutMs: 300 })).toMatchObject(unknown);
    const cut = call(servers, server, 'wait', {}, { timeoutMs: 5_000 });
    while (server.calls.length < 3) await sleep(5);
    const began = performance.now();
    await server.stop();
    expect(await cut).toMatchObject(unknown);
    expect(performance.now() - began).toBeLessThan(2_000);
    sent.length = 0;
    expect(await call(servers, server, 'wait')).toMatchObject({ isError: true, outcome: 'unavailable' });
    expect([server.calls, sent]).toEqual([['wait', 'flood', 'wait'], []]);
  });

  it('is cut when its caller is', async () => {
    const server = await start((mcp) => {
      mcp.registerTool('wait', { description: '', inputSchema: z.object({}) }, async () => {
        await sleep(5_000, undefined, { ref: false });
        return { content: [] };
      });
    });
    const gone = new AbortController();
    const cut = call(client(server), server, 'wait', {}, { signal: gone.signal });
    while (server.calls.length === 0) await sleep(5);
    gone.abort(new Error('enough'));
    await expect(cut).rejects.toThrow('enough');
  });
});
