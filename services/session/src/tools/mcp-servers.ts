import {
  AppError,
  type ContentBlock,
  type JsonObject,
  LIMITS,
  type McpServer,
  storableText,
} from '@holdfast/contracts';
import {
  Client,
  type ClientOptions,
  type ContentBlock as McpBlock,
  ProtocolError,
  SdkHttpError,
  StreamableHTTPClientTransport,
} from '@modelcontextprotocol/client';
import { fetch as publicFetch } from 'undici';
import type { ToolResult } from '../session/session.decider.ts';
import { type PublicNetwork, refusalIn } from './public-network.ts';
import type { McpTool } from './tool-definitions.ts';

export interface McpBounds {
  /** To connect, and then again to list the tools. */
  readonly connectMs: number;
  /** Of one answer of a server. */
  readonly maxBytes: number;
  readonly maxTools: number;
}

/** So long a list of tools is believed, and a connection kept that nobody uses. */
const LIST_TTL_MS = 5 * 60_000;
const MAX_CONNECTIONS = 1_024;
const MAX_TEXT_CHARS = 100_000;
const IMAGE = /^image\/(png|jpeg|gif|webp)$/;

/** Servers may list schemas for their results; patterns that a stranger wrote are not run here. */
const TRUSTING: NonNullable<ClientOptions['jsonSchemaValidator']> = {
  getValidator: () => (input) => ({ valid: true, data: input as never, errorMessage: undefined }),
};

interface Connection {
  readonly client: Client;
  readonly tools: readonly McpTool[];
  readonly listedAtMs: number;
  usedAtMs: number;
}

/**
 * The MCP servers of agents, over Streamable HTTP: their tools, and calls to them. A session has a connection of its own
 * to each of its servers, kept between its turns for a while. Only servers on the public network are reached, and only
 * without credentials.
 *
 * It repeats nothing: a call is sent once, or it is not known to have been.
 */
export class McpServers {
  readonly #bounds: McpBounds;
  readonly #network: PublicNetwork;
  /** The least recently used first. */
  readonly #connections = new Map<string, Connection>();

  constructor(bounds: McpBounds, network: PublicNetwork) {
    this.#bounds = bounds;
    this.#network = network;
  }

  /**
   * What a server lists, asked anew when the list is old.
   * @throws AppError `mcp.connection-failed`, `mcp.authentication-failed`; the signal's reason
   */
  async tools(sessionId: string, server: McpServer, signal: AbortSignal): Promise<readonly McpTool[]> {
    return (await this.#connection(sessionId, server, signal)).tools;
  }

  /**
   * Calls a tool. What goes wrong is a result that says so; with the outcome `unknown` where the call may have been done.
   * `onSent` is called before it can be. @throws the signal's reason
   */
  async call(
    sessionId: string,
    server: McpServer,
    tool: string,
    input: JsonObject,
    options: { readonly signal: AbortSignal; readonly timeoutMs: number; readonly onSent: () => void },
  ): Promise<ToolResult> {
    const { signal, timeoutMs, onSent } = options;
    let connection: Connection;
    try {
      connection = await this.#connection(sessionId, server, signal);
    } catch (error) {
      if (error instanceof AppError && error.code.startsWith('mcp.')) return failed(error.message, 'unavailable');
      throw error;
    }
    try {
      onSent();
      const result = await connection.client.callTool(
        { name: tool, arguments: input },
        { signal, timeout: timeoutMs, maxTotalTimeout: timeoutMs },
      );
      return {
        text: '',
        content: contentOf(result.content, result.structuredContent),
        isError: result.isError === true,
        outcome: 'completed',
        fullOutput: null,
      };
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof ProtocolError && error.code !== BROKEN_OFF)
        return failed(storableText(error.message.slice(0, 2_000)), 'completed');
      // Whatever broke, the next call begins with a connection of its own.
      this.#connections.delete(keyOf(sessionId, server));
      const refusal = refusalIn(error);
      if (refusal !== undefined) return failed(refusal.message, 'unavailable');
      if (error instanceof SdkHttpError && error.status !== undefined && error.status < 500)
        return failed(`The MCP server ${server.name} refused the call (HTTP ${error.status}).`, 'unavailable');
      return failed(
        `The MCP server ${server.name} gave no answer within ${timeoutMs} ms or broke off; the outcome is unknown.`,
        'unknown',
      );
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.#connections.values()].map(({ client }) => client.close()));
  }

  async #connection(sessionId: string, server: McpServer, signal: AbortSignal): Promise<Connection> {
    signal.throwIfAborted();
    const key = keyOf(sessionId, server);
    const known = this.#connections.get(key);
    const fresh = known !== undefined && known.listedAtMs > Date.now() - LIST_TTL_MS;
    const connection = fresh ? known : await this.#connect(server, signal);
    connection.usedAtMs = Date.now();
    this.#connections.delete(key);
    this.#connections.set(key, connection);
    for (const [other, { usedAtMs }] of this.#connections) {
      if (this.#connections.size <= MAX_CONNECTIONS && usedAtMs > Date.now() - LIST_TTL_MS) break;
      // Calls that are under way keep what they need of it; it holds nothing else open.
      this.#connections.delete(other);
    }
    return connection;
  }

  async #connect(server: McpServer, signal: AbortSignal): Promise<Connection> {
    const client = new Client(
      { name: 'holdfast', version: '0.1.0' },
      { versionNegotiation: { mode: 'auto' }, inputRequired: { autoFulfill: false }, jsonSchemaValidator: TRUSTING },
    );
    let refusal: AppError | undefined;
    const options = { signal, timeout: this.#bounds.connectMs };
    try {
      const url = new URL(server.url);
      const fetch = async (input: string | URL, init?: RequestInit): Promise<Response> => {
        try {
          return await this.#fetch(server, new URL(input), init ?? {});
        } catch (error) {
          refusal = refusalIn(error);
          throw refusal ?? error;
        }
      };
      await client.connect(new PromptTransport(url, { fetch, reconnectionOptions: NO_RECONNECTION }), options);
      const { tools } = await client.listTools(undefined, options);
      return { client, tools: this.#checked(server, tools), listedAtMs: Date.now(), usedAtMs: Date.now() };
    } catch (error) {
      await client.close();
      signal.throwIfAborted();
      if (error instanceof AppError && error.code.startsWith('mcp.')) throw error;
      if (refusal?.code.startsWith('mcp.') === true) throw refusal;
      const why = refusal?.message ?? `It gave no answer that could be used within ${this.#bounds.connectMs} ms.`;
      throw new AppError(
        'unavailable',
        'mcp.connection-failed',
        `The MCP server ${server.name} cannot be used. ${why}`,
        {
          cause: error,
        },
      );
    }
  }

  #checked(
    server: McpServer,
    listed: readonly { name: string; description?: string | undefined; inputSchema: object }[],
  ): readonly McpTool[] {
    const tools = listed.map(({ name, description, inputSchema }) => ({
      name,
      description: (description ?? '').slice(0, LIMITS.descriptionChars),
      inputSchema: inputSchema as Readonly<Record<string, unknown>>,
    }));
    if (tools.length > this.#bounds.maxTools || JSON.stringify(tools).length > LIMITS.toolsBytes)
      throw new AppError(
        'invalid',
        'mcp.connection-failed',
        `The MCP server ${server.name} lists ${tools.length} tools; at most ${this.#bounds.maxTools} in ${LIMITS.toolsBytes} bytes can be used.`,
      );
    return tools;
  }

  async #fetch(server: McpServer, url: URL, init: RequestInit): Promise<Response> {
    this.#network.requireUrl(url);
    // Nothing that servers send by themselves is listened to.
    if ((init.method ?? 'GET') === 'GET') return new Response(null, { status: 405 });
    const response = await publicFetch(url, {
      // The types of Node's fetch are those of another release of undici.
      ...(init as object),
      redirect: 'manual',
      dispatcher: this.#network.dispatcher,
    });
    if (response.status === 401 || response.status === 403) {
      await response.body?.cancel();
      throw new AppError(
        'forbidden',
        'mcp.authentication-failed',
        `The MCP server ${server.name} wants credentials (HTTP ${response.status}); they come from vaults, which are not supported yet.`,
      );
    }
    const body =
      response.body === null ? null : (response.body as ReadableStream<Uint8Array>).pipeThrough(this.#bounded());
    return new Response(body, {
      status: response.status,
      statusText: response.statusText,
      headers: Object.fromEntries(response.headers),
    });
  }

  #bounded(): TransformStream<Uint8Array, Uint8Array> {
    const { maxBytes } = this.#bounds;
    let bytes = 0;
    return new TransformStream({
      transform: (chunk, controller) => {
        bytes += chunk.length;
        if (bytes > maxBytes) controller.error(new Error(`more than ${maxBytes} bytes`));
        else controller.enqueue(chunk);
      },
    });
  }
}

/** JSON-RPC's code for a connection that was closed. */
const BROKEN_OFF = -32_000;

/**
 * A request whose answer breaks off fails at once. The SDK would wait for the rest of its time, or ask for what is missing
 * of the answer, which few servers have.
 */
class PromptTransport extends StreamableHTTPClientTransport {
  override send(...[message, options]: Parameters<StreamableHTTPClientTransport['send']>): Promise<void> {
    if (Array.isArray(message) || !('method' in message) || !('id' in message)) return super.send(message, options);
    const error = { code: BROKEN_OFF, message: 'the answer broke off' };
    return super.send(message, {
      ...options,
      onRequestStreamEnd: () => {
        options?.onRequestStreamEnd?.();
        // After its answer, if there was one: then this is of a request that is not known any more.
        setImmediate(() => this.onmessage?.({ jsonrpc: '2.0', id: message.id, error }));
      },
    });
  }
}
const NO_RECONNECTION = {
  maxRetries: 0,
  initialReconnectionDelay: 1_000,
  maxReconnectionDelay: 1_000,
  reconnectionDelayGrowFactor: 1,
};

function keyOf(sessionId: string, server: McpServer): string {
  return `${sessionId} ${server.name} ${server.url}`;
}

function failed(text: string, outcome: ToolResult['outcome']): ToolResult {
  return { text, isError: true, outcome, fullOutput: null };
}

/** A result in the wire's blocks; what those cannot hold is named. */
function contentOf(blocks: readonly McpBlock[], structured: unknown): ContentBlock[] {
  let left = MAX_TEXT_CHARS;
  const text = (given: string): ContentBlock[] => {
    const kept = storableText(given.slice(0, left));
    const more = given.length - kept.length;
    left -= kept.length;
    return kept === '' && more === 0
      ? []
      : [{ type: 'text', text: more > 0 ? `${kept}\n[cut: ${more} more characters]` : kept }];
  };
  const content = blocks.flatMap((block): ContentBlock[] => {
    switch (block.type) {
      case 'text':
        return text(block.text);
      case 'image':
        if (!IMAGE.test(block.mimeType)) return text(`[an image of the type ${block.mimeType}, which cannot be shown]`);
        return [{ type: 'image', source: { type: 'base64', media_type: block.mimeType, data: block.data } }];
      case 'resource':
        return 'text' in block.resource
          ? text(block.resource.text)
          : text(`[${block.resource.uri}: ${block.resource.mimeType ?? 'binary'} content, which cannot be shown]`);
      case 'resource_link':
        return text(`${block.title ?? block.name}: ${block.uri}`);
      default:
        return text(`[${block.type} content, which cannot be shown]`);
    }
  });
  if (content.length > 0) return content;
  return text(structured === undefined ? '(no output)' : JSON.stringify(structured));
}
