import { lookup } from 'node:dns/promises';
import { AppError } from '@holdfast/contracts';
import { isPublicAddress } from '@holdfast/platform';
import { Agent, buildConnector } from 'undici';

/** `host:port` pairs that the operator allows although they are not public; empty in production. */
export type PrivateAllowList = ReadonlySet<string>;

/** Reads an allow list of a setting: `host:port,…`. */
export function privateAllowList(setting: string): PrivateAllowList {
  return new Set(
    setting
      .split(',')
      .map((entry) => entry.trim())
      .filter((entry) => entry !== ''),
  );
}

const dialChecked = buildConnector({ timeout: 10_000 });

function refused(message: string): AppError {
  return new AppError('forbidden', 'network.refused', message);
}

/**
 * The way to what is on the public internet and nowhere else. Every connection resolves its host once, checks all of its
 * addresses and dials one that it checked, so that no name can be made to mean another place in between.
 */
export class PublicNetwork {
  /** For undici: its connections fail with AppError `network.refused` or `network.unresolved`. */
  readonly dispatcher: Agent;
  readonly #allow: PrivateAllowList;

  constructor(allow: PrivateAllowList) {
    this.#allow = allow;
    this.dispatcher = new Agent({
      keepAliveTimeout: 10_000,
      connect: (options, callback) => {
        void this.#dial(options, callback);
      },
    });
  }

  /** Refuses what is no address of a page or a server: another scheme, or credentials in it. @throws AppError */
  requireUrl(url: URL): void {
    if (url.protocol !== 'http:' && url.protocol !== 'https:') throw refused('Only http and https URLs can be used.');
    if (url.username !== '' || url.password !== '') throw refused('URLs with credentials are not used.');
  }

  async close(): Promise<void> {
    await this.dispatcher.destroy();
  }

  async #dial(...[options, callback]: Parameters<buildConnector.connector>): Promise<void> {
    const port = options.port === '' ? (options.protocol === 'https:' ? '443' : '80') : options.port;
    let hostname: string;
    try {
      hostname = await this.#addressOf(options.hostname.replace(/^\[|\]$/g, ''), port);
    } catch (error) {
      callback(error as Error, null);
      return;
    }
    dialChecked({ ...options, hostname }, callback);
  }

  async #addressOf(host: string, port: string): Promise<string> {
    const found = await lookup(host, { all: true }).catch((cause: unknown) => {
      throw new AppError('unavailable', 'network.unresolved', `The host ${host} could not be resolved.`, { cause });
    });
    const first = found[0]?.address;
    if (first === undefined)
      throw new AppError('unavailable', 'network.unresolved', `The host ${host} has no address.`);
    if (this.#allow.has(`${host}:${port}`)) return first;
    // One private address among public ones is how rebinding looks: all must be public.
    if (found.some(({ address }) => !isPublicAddress(address)))
      throw refused(`The host ${host} is not on the public internet; only public addresses can be reached.`);
    return first;
  }
}

/** The refusal inside what a client of the network throws; undefined where it failed for another reason. */
export function refusalIn(error: unknown): AppError | undefined {
  for (let cause: unknown = error, depth = 0; cause instanceof Error && depth < 5; cause = cause.cause, depth++)
    if (cause instanceof AppError) return cause;
  return undefined;
}
