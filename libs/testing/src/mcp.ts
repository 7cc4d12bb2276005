import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { NodeStreamableHTTPServerTransport } from '@modelcontextprotocol/node';
import { McpServer } from '@modelcontextprotocol/server';

/** A real MCP server on loopback, over Streamable HTTP. */
export interface TestMcpServer {
  readonly url: string;
  /** `host:port`, as an allow list has it. */
  readonly host: string;
  /** The names of the tools that were called, in order; of calls that began. */
  readonly calls: readonly string[];
  /** How often its tools were listed. */
  readonly lists: number;
  /** Takes the port away, and cuts what is open. */
  stop(): Promise<void>;
}

/** Says what its tools are; called for every request, so a server may change. */
export type McpTools = (server: McpServer) => void;

/**
 * Starts a server whose tools `tools` registers.
 * @param options.refuse a status that every request is answered with instead
 */
export async function startMcpServer(
  tools: McpTools,
  options: { readonly refuse?: number } = {},
): Promise<TestMcpServer> {
  const calls: string[] = [];
  let lists = 0;
  const server: Server = createServer((request, response) => {
    void (async () => {
      if (options.refuse !== undefined) {
        response.writeHead(options.refuse, { 'www-authenticate': 'Bearer' }).end();
        return;
      }
      let text = '';
      for await (const piece of request.setEncoding('utf8')) text += piece as string;
      const body: unknown = text === '' ? undefined : JSON.parse(text);
      const message = body as { method?: string; params?: { name?: string } } | undefined;
      if (message?.method === 'tools/call') calls.push(message.params?.name ?? '');
      if (message?.method === 'tools/list') lists += 1;
      const mcp = new McpServer({ name: 'spec', version: '1.0.0' });
      tools(mcp);
      const transport = new NodeStreamableHTTPServerTransport();
      await mcp.connect(transport);
      await transport.handleRequest(request, response, body);
    })().catch((error: unknown) => response.destroy(error instanceof Error ? error : undefined));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url: `http://${host}/mcp`,
    host,
    calls,
    get lists() {
      return lists;
    },
    stop: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
