import type { Metadata, Viewport } from 'next';
import { cookies } from 'next/headers';
import type { ReactNode } from 'react';
import { Providers } from '../components/providers.tsx';
import { isTheme, THEME_COOKIE } from '../lib/theme.ts';
import './globals.css';

export const metadata: Metadata = { title: { default: 'Holdfast', template: '%s · Holdfast' } };
export const viewport: Viewport = {
  themeColor: [
    { media: '(prefers-color-scheme: light)', color: '#ffffff' },
    { media: '(prefers-color-scheme: dark)', color: '#1b1d20' },
  ],
};
// Every page carries a nonce of its own.
export const dynamic = 'force-dynamic';

export default async function RootLayout({ children }: { children: ReactNode }) {
  const theme = (await cookies()).get(THEME_COOKIE)?.value;
  return (
    <html lang="en" {...(isTheme(theme) ? { 'data-theme': theme } : {})}>
      <body className="bg-page text-ink antialiased">
        <Providers>{children}</Providers>
      </body>
    </html>
  );
}
