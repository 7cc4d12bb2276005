import { AppError, isAppError, type JsonObject, storableText } from '@holdfast/contracts';
import { convert } from 'html-to-text';
import { request as httpRequest } from 'undici';
import { z } from 'zod';
import type { ToolResult } from '../session/session.decider.ts';
import type { PublicNetwork } from './public-network.ts';

const input = z.object({ url: z.string().max(8_192) });

export interface WebFetchBounds {
  readonly timeoutMs: number;
  readonly maxBytes: number;
  readonly maxRedirects: number;
  readonly maxTextChars: number;
}

function refused(message: string): AppError {
  return new AppError('forbidden', 'web-fetch.refused', message);
}

function domainAllowed(
  host: string,
  config: { allowed?: readonly string[] | null; blocked?: readonly string[] | null },
): boolean {
  const within = (domain: string): boolean => host === domain || host.endsWith(`.${domain}`);
  if (config.allowed) return config.allowed.some((domain) => within(domain.toLowerCase()));
  return !(config.blocked ?? []).some((domain) => within(domain.toLowerCase()));
}

function asText(bytes: Uint8Array, contentType: string): string {
  const type = contentType.split(';')[0]?.trim().toLowerCase() ?? '';
  if (!/^(text\/|application\/(json|xml|xhtml\+xml|javascript|x-yaml|.*\+json|.*\+xml))/.test(type) && type !== '') {
    throw refused(`The page has the type ${type}, which cannot be read as text.`);
  }
  const text = storableText(new TextDecoder().decode(bytes));
  if (!/html/.test(type)) return text;
  return convert(text, {
    wordwrap: false,
    selectors: [{ selector: 'img', format: 'skip' }],
    limits: { maxInputLength: 8_000_000 },
  });
}

/**
 * `web_fetch`: GET of a public page, run in the platform; every redirect is checked as the first address is. Errors become error results for the model; it never throws for a bad page.
 */
export class WebFetch {
  readonly #bounds: WebFetchBounds;
  readonly #network: PublicNetwork;

  constructor(bounds: WebFetchBounds, network: PublicNetwork) {
    this.#bounds = bounds;
    this.#network = network;
  }

  async run(
    raw: JsonObject,
    domains: { allowed?: readonly string[] | null; blocked?: readonly string[] | null; maxChars?: number },
    signal: AbortSignal,
  ): Promise<ToolResult> {
    const parsed = input.safeParse(raw);
    if (!parsed.success) return failed('web_fetch needs {"url": "https://…"}.');
    const deadline = AbortSignal.any([signal, AbortSignal.timeout(this.#bounds.timeoutMs)]);
    try {
      const page = await this.#fetch(new URL(parsed.data.url), domains, deadline);
      const maxChars = Math.min(this.#bounds.maxTextChars, domains.maxChars ?? Number.POSITIVE_INFINITY);
      const cut = page.text.length > maxChars;
      const text = cut
        ? `${storableText(page.text.slice(0, maxChars))}\n[cut: ${page.text.length - maxChars} more characters]`
        : page.text;
      return {
        text: `${page.url} (HTTP ${page.status})\n\n${text}`,
        isError: page.status >= 400,
        outcome: 'completed',
        fullOutput: null,
      };
    } catch (error) {
      signal.throwIfAborted();
      if (isAppError(error)) return failed(error.message);
      if (deadline.aborted) return failed(`The page did not answer within ${this.#bounds.timeoutMs} ms.`);
      if (error instanceof TypeError) return failed('That is not a valid URL.');
      return failed('The page could not be fetched.');
    }
  }

  async #fetch(
    start: URL,
    domains: { allowed?: readonly string[] | null; blocked?: readonly string[] | null },
    signal: AbortSignal,
  ): Promise<{ url: string; status: number; text: string }> {
    let url = start;
    for (let hop = 0; hop <= this.#bounds.maxRedirects; hop++) {
      if (!domainAllowed(url.hostname.toLowerCase(), domains))
        throw refused(`The agent may not fetch from ${url.hostname}.`);
      this.#network.requireUrl(url);
      const response = await httpRequest(url, {
        dispatcher: this.#network.dispatcher,
        signal,
        method: 'GET',
        headers: {
          'user-agent': 'Holdfast/0.1 (+web_fetch)',
          accept: 'text/html,text/*;q=0.9,application/json;q=0.9,*/*;q=0.1',
        },
      });
      const location = response.headers.location;
      if (response.statusCode >= 300 && response.statusCode < 400 && typeof location === 'string') {
        response.body.destroy();
        url = new URL(location, url);
        continue;
      }
      const bytes = await readBounded(response.body, this.#bounds.maxBytes);
      const type = response.headers['content-type'];
      return {
        url: url.href,
        status: response.statusCode,
        text: asText(bytes, Array.isArray(type) ? (type[0] ?? '') : (type ?? '')),
      };
    }
    throw refused(`The page redirects more than ${this.#bounds.maxRedirects} times.`);
  }
}

async function readBounded(body: AsyncIterable<Uint8Array>, maxBytes: number): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of body) {
    size += part.length;
    if (size > maxBytes) throw refused(`The page is larger than ${maxBytes} bytes.`);
    parts.push(part);
  }
  return Buffer.concat(parts);
}

function failed(text: string): ToolResult {
  return { text, isError: true, outcome: 'completed', fullOutput: null };
}
